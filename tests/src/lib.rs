//! The shared harness of the integration tests.
