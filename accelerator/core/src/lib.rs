//! Desired state against loaded state, as a list of map operations.
