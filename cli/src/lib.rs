//! What the command line is made of, so that the integration tests can use its parts.
