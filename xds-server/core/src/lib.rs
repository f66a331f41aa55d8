//! The xDS protocol as state machines that perform no I/O.
