//! The gRPC contract and its generated code
