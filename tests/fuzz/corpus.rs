//! Inputs that are kept, and the parts of messages that they are made of.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};

use crate::mutation::Tree;

static DESCRIPTORS: LazyLock<DescriptorPool> = LazyLock::new(|| {
    DescriptorPool::decode(synclave::pb::FILE_DESCRIPTOR_SET).expect("the set was made by this crate's build")
});

/// A message of ours.
pub(crate) fn descriptor(name: &str) -> MessageDescriptor {
    DESCRIPTORS.get_message_by_name(name).unwrap_or_else(|| panic!("{name} is no message of ours"))
}

/// An input from the corpus.
pub(crate) struct Kept {
    pub(crate) name: String,
    pub(crate) input: Vec<u8>,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus")
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("a directory that can be read").path()).collect();
    paths.sort();
    paths
}

/// The inputs of one target, by name. `message` is what its JSON files are.
pub(crate) fn inputs(target: &str, message: Option<&str>) -> Vec<Kept> {
    entries(&root().join(target)).iter().map(|path| read(path, message)).collect()
}

fn read(path: &Path, message: Option<&str>) -> Kept {
    let bytes = fs::read(path).expect("a file that can be read");
    let input = match path.extension().and_then(|extension| extension.to_str()) {
        Some("bin") => bytes,
        Some("txt") => bytes.strip_suffix(b"\n").unwrap_or(&bytes).to_vec(),
        Some("json") => {
            let name = message.unwrap_or_else(|| panic!("{}: this target takes no messages", path.display()));
            let mut json = serde_json::Deserializer::from_slice(&bytes);
            let message = DynamicMessage::deserialize(descriptor(name), &mut json);
            message.unwrap_or_else(|error| panic!("{}: no {name} in JSON: {error}", path.display())).encode_to_vec()
        }
        _ => panic!("{}: a kept input is a .json, .txt or .bin file", path.display()),
    };
    Kept { name: path.display().to_string(), input }
}

/// Messages of the corpus and of all that is in them, by their types.
#[derive(Default)]
pub(crate) struct Dictionary(BTreeMap<String, Vec<Tree>>);

impl Dictionary {
    pub(crate) fn of_corpus() -> Self {
        let mut dictionary = Self::default();
        for target in crate::targets::all() {
            let Some(message) = target.message else { continue };
            for kept in inputs(target.name, Some(message)) {
                if let Some(tree) = Tree::parse(&kept.input, &descriptor(message)) {
                    tree.visit(&mut |part| {
                        dictionary.0.entry(part.descriptor.full_name().to_owned()).or_default().push(part.clone());
                    });
                }
            }
        }
        dictionary
    }

    pub(crate) fn of_type(&self, descriptor: &MessageDescriptor) -> &[Tree] {
        self.0.get(descriptor.full_name()).map_or(&[], Vec::as_slice)
    }
}
