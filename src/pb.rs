//! The generated code of `proto/synclave/v1`, and its descriptor set; nothing else. Used by the edge and its clients only.

#![allow(missing_docs, clippy::all, clippy::doc_markdown, rustdoc::invalid_html_tags, rustdoc::broken_intra_doc_links)]

tonic::include_proto!("synclave.v1");

/// The encoded `FileDescriptorSet`, for reflection and for proto3 JSON.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("synclave_descriptor");
