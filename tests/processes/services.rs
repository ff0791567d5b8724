//! A coordinator, providers and watchers, each a process of its own, and clients of the generated code.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use serde_json::Value;
use synclave::pb;
use synclave::pb::operation_service_client::OperationServiceClient;
use synclave::pb::session_service_client::SessionServiceClient;
use synclave::pb::sync_info_service_client::SyncInfoServiceClient;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint};

use super::{Ended, PATIENCE, Process, synclave, until};

/// Spans that let a test see a lease run out, and are yet long enough for a loaded machine.
const SHORT_SPANS: [&str; 10] =
    ["--lease", "3s", "--call-deadline", "2s", "--stream-idle", "2s", "--connect-patience", "1s", "--end-grace", "1s"];

/// How long a provider may need to be rid of a session whose coordinator is gone: twice the lease, and what a loaded machine
/// adds.
pub const LAPSED: Duration = Duration::from_secs(30);

/// A running `serve`.
#[derive(Debug)]
pub struct Server {
    pub process: Process,
    pub address: String,
    data_dir: PathBuf,
}

impl Server {
    /// Starts on a free port.
    pub fn start(data_dir: &Path) -> Self {
        Self::start_at("127.0.0.1:0", data_dir)
    }

    pub fn start_at(listen: &str, data_dir: &Path) -> Self {
        let mut arguments: Vec<OsString> = vec!["serve".into(), "--listen".into(), listen.into()];
        arguments.extend(["--data-dir".into(), data_dir.into()]);
        arguments.extend(SHORT_SPANS.iter().map(OsString::from));
        let process = Process::start(synclave(arguments));
        let address = process.address();
        Self { process, address, data_dir: data_dir.to_owned() }
    }

    /// kill -9, then another one on the same port with the same data.
    pub fn killed_and_restarted(self) -> Self {
        let listen = self.address.trim_start_matches("http://").to_owned();
        let data_dir = self.data_dir.clone();
        self.process.kill();
        Self::start_at(&listen, &data_dir)
    }

    /// kill -9, then another one on another port with the same data.
    pub fn killed_and_moved(self) -> Self {
        let data_dir = self.data_dir.clone();
        self.process.kill();
        Self::start(&data_dir)
    }

    /// The command line of a client of this server.
    pub fn command<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> std::process::Command {
        let mut command = synclave(arguments);
        command.args(["--output", "json", "--server", &self.address]);
        command
    }

    /// A client of this server, to its end.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = S>) -> Ended {
        Process::start(self.command(arguments)).end()
    }

    /// Begins a session and does not wait for it; its SyncGuid.
    pub fn begin(&self, source: &str, destination: &str) -> String {
        let begun = self.run(["session", "begin", source, destination]).expect_code(0).json();
        begun["session"]["syncGuid"].as_str().expect("a SyncGuid").to_owned()
    }

    /// Runs a session to its end, as it then is.
    pub fn session(&self, source: &str, destination: &str) -> Value {
        let ended = self.run(["session", "begin", source, destination, "--wait"]);
        ended.json()["session"].clone()
    }

    /// Runs a session that must end in sync; its sync info.
    #[track_caller]
    pub fn session_in_sync(&self, source: &str, destination: &str) -> Value {
        let session = self.session(source, destination);
        assert_eq!(session["state"], "SYNC_STATE_IN_SYNC", "{session}");
        self.sync_info(session["syncGuid"].as_str().expect("a SyncGuid"), None)
    }

    /// `session get`.
    #[track_caller]
    pub fn get_session(&self, sync_guid: &str) -> Value {
        self.run(["session", "get", sync_guid]).expect_code(0).json()["session"].clone()
    }

    /// Waits for a session's end.
    #[track_caller]
    pub fn ended_session(&self, sync_guid: &str) -> Value {
        let client = Client::connect(&self.address);
        until("the session ends", PATIENCE, || {
            let session = client.session(sync_guid);
            is_final(session.state).then_some(())
        });
        self.get_session(sync_guid)
    }

    /// GetSyncInfo, as JSON.
    pub fn sync_info(&self, sync_guid: &str, inbound: Option<bool>) -> Value {
        Client::connect(&self.address).sync_info(sync_guid, inbound)
    }

    /// A `watch --output json` with these conditions.
    pub fn watch(&self, conditions: &[&str]) -> Process {
        let arguments = ["watch"].into_iter().chain(conditions.iter().copied());
        Process::start(self.command(arguments))
    }
}

/// True for the four states that a session ends in.
pub fn is_final(state: Option<i32>) -> bool {
    state.is_some_and(|state| state >= pb::SyncState::Completed as i32)
}

/// A running `provider file`.
#[derive(Debug)]
pub struct FileProvider {
    pub process: Process,
    pub address: String,
    root: PathBuf,
}

impl FileProvider {
    /// Starts on a free port.
    pub fn start(root: &Path) -> Self {
        Self::start_at("127.0.0.1:0", root)
    }

    pub fn start_at(listen: &str, root: &Path) -> Self {
        let arguments: [&OsStr; 5] =
            ["provider".as_ref(), "file".as_ref(), root.as_os_str(), "--listen".as_ref(), listen.as_ref()];
        let process = Process::start(synclave(arguments));
        let address = process.address();
        Self { process, address, root: root.to_owned() }
    }

    /// Another one in the place of this one, which is dead: on the same port, or on another.
    pub fn restarted(self, same_port: bool) -> Self {
        let root = self.root.clone();
        let listen =
            if same_port { self.address.trim_start_matches("http://").to_owned() } else { "127.0.0.1:0".into() };
        drop(self);
        Self::start_at(&listen, &root)
    }
}

/// Clients of the generated code over one channel.
#[derive(Debug)]
pub struct Client {
    runtime: Runtime,
    channel: Channel,
}

impl Client {
    pub fn connect(address: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let endpoint = Endpoint::from_shared(address.to_owned()).expect("an address");
        let channel = runtime.block_on(endpoint.timeout(PATIENCE).connect()).expect("the server is there");
        Self { runtime, channel }
    }

    /// Runs calls to their end.
    pub fn wait<T>(&self, calls: impl Future<Output = T>) -> T {
        self.runtime.block_on(async { tokio::time::timeout(PATIENCE, calls).await.expect("an answer in time") })
    }

    pub fn sessions(&self) -> SessionServiceClient<Channel> {
        SessionServiceClient::new(self.channel.clone())
    }

    pub fn operations(&self) -> OperationServiceClient<Channel> {
        OperationServiceClient::new(self.channel.clone())
    }

    pub fn sync_infos(&self) -> SyncInfoServiceClient<Channel> {
        SyncInfoServiceClient::new(self.channel.clone())
    }

    pub fn session(&self, sync_guid: &str) -> pb::Session {
        let request = pb::GetSessionRequest { sync_guid: sync_guid.to_owned() };
        let answer = self.wait(self.sessions().get_session(request)).expect("it is there");
        answer.into_inner().session.expect("always set")
    }

    pub fn sync_info(&self, sync_guid: &str, inbound: Option<bool>) -> Value {
        let request = pb::GetSyncInfoRequest { sync_guid: sync_guid.to_owned(), inbound };
        let answer = self.wait(self.sync_infos().get_sync_info(request)).expect("it is there");
        json(&answer.into_inner().sync_info.expect("always set"))
    }

    /// ListSyncInfo, each session once, by SyncGuid.
    pub fn all_sync_infos(&self) -> std::collections::BTreeMap<String, Value> {
        let request = pb::ListSyncInfoRequest { page_size: 1000, ..Default::default() };
        let answer = self.wait(self.sync_infos().list_sync_info(request)).expect("listed").into_inner();
        let by_guid = |info: &pb::SyncInfo| (info.dfsr_sync_info.clone().expect("always set").sync_guid, json(info));
        answer.sync_infos.iter().map(by_guid).collect()
    }
}

/// A message as the command line prints it.
pub fn json<M: prost::Message + prost::Name>(message: &M) -> Value {
    let pool = DescriptorPool::decode(pb::FILE_DESCRIPTOR_SET).expect("a descriptor set");
    let descriptor = pool.get_message_by_name(&M::full_name()).expect("described");
    let message = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).expect("the same message");
    let options = SerializeOptions::new().skip_default_fields(false).stringify_64_bit_integers(true);
    message.serialize_with_options(serde_json::value::Serializer, &options).expect("can be shown")
}
