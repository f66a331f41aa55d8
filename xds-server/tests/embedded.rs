//! The example of the library runs to its end.

#[path = "../examples/embedded.rs"]
#[allow(dead_code, reason = "what the example's own main does beside")]
mod embedded;

use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn the_example_converges_and_ends() {
    let ran = tokio::time::timeout(Duration::from_mins(1), embedded::run());
    ran.await
        .expect("it ends by itself")
        .expect("all goes well");
}
