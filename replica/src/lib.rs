//! A node's replicas and the client an engine reaches them with
