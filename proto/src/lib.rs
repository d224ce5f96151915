//! The gRPC contract and its generated code.
//!
//! The contract is `ashlar/v1/*.proto`; its comments are the reference. [`error`] is the machine-readable part of an
//! error status, which gRPC carries beside code and message. [`chunk`] is what both ends of an export or import do alike.

#![forbid(unsafe_code)]

pub mod chunk;
pub mod error;
#[cfg(test)]
mod reference;
mod secrets;
mod states;

/// Package `ashlar.v1`, as generated.
pub mod v1 {
    #![allow(missing_docs, reason = "the generator documents what the contract comments, and adds items of its own")]
    #![allow(clippy::all, reason = "generated code")]
    tonic::include_proto!("ashlar.v1");
}

/// The contract as an encoded `google.protobuf.FileDescriptorSet`, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
