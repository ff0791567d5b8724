//! Compiles the protos, without `protoc`, into `OUT_DIR`: Rust code, and the descriptor set that reflection and JSON use.

use std::path::PathBuf;

use prost::Message as _;

const PROTOS: [&str; 8] = [
    "synclave/v1/knowledge_sync_provider_service.proto",
    "synclave/v1/operation_service.proto",
    "synclave/v1/provider_gateway_service.proto",
    "synclave/v1/replication_service.proto",
    "synclave/v1/session_service.proto",
    "synclave/v1/session_state_service.proto",
    "synclave/v1/simple_sync_provider_service.proto",
    "synclave/v1/sync_info_service.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(PROTOS, ["proto"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("synclave_descriptor.bin"), descriptors.encode_to_vec())?;
    // Names go with the types, so that a message can be found in the descriptor set. Only prost's own builder has that switch.
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".")
        // Written by hand, in the module that the generated code is part of.
        .extern_path(".synclave.v1.SyncInfoChanges", "crate::pb::SyncInfoChanges")
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}
