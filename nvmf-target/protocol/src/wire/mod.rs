//! Layouts of the specifications: they describe bytes and name values, they decide nothing.
//!
//! Each structure is encoded and decoded at explicit byte offsets, little-endian. 0's based values
//! of the wire are converted once, while parsing; in memory every count counts from one.

pub(crate) mod bytes;
pub mod completion;
pub mod dataset;
pub mod digest;
pub mod discovery;
pub mod fabrics;
pub mod feature;
pub mod identify;
pub mod log_page;
pub mod opcode;
pub mod pdu;
pub mod property;
pub mod sgl;
pub mod status;
pub mod submission;

pub use completion::Completion;
pub use status::Status;
pub use submission::Submission;
