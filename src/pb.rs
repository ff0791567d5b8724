//! The generated code of `proto/synclave/v1`, and its descriptor set; one message of it is written by hand. Used by the edge and its clients only.

// A sync info is by far the commonest variant of its oneof: boxing it would cost an allocation for each.
#![allow(missing_docs, clippy::large_enum_variant)]

mod sync_info_changes;

pub use sync_info_changes::SyncInfoChanges;

tonic::include_proto!("synclave.v1");

/// The encoded `FileDescriptorSet`, for reflection and for proto3 JSON.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("synclave_descriptor");
