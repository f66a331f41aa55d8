//! A refusal is traced to the file and line of what was refused.

use crate::support::{Client, Running, clusters, names};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_names_the_file_and_line_of_the_resource() {
    let running = Running::start(Some(&clusters(&[("a", 1), ("b", 1)])), &[]).await;
    let none = running.answer(&["nacks"]).await;
    assert_eq!(none, "no client refused anything\n");
    let mut client = Client::connect(&running, "web").await;
    client.accept().await;
    running
        .push(&clusters(&[("a", 1), ("b", 2), ("c", 1)]), 2)
        .await;
    let response = client.next().await;
    let words =
        "Error adding/updating cluster(s) b: unknown thing { inline_string: \"TOP-SECRET\" }";
    client.nack(&response, words).await;
    running
        .wait_for("/nacks", |it| it.contains("\"web\""))
        .await;

    let list = running.answer(&["nacks"]).await;
    let wanted = [
        " b ",
        "a.yaml:9 (document 1, spec.resources[1])",
        "in force",
        "Error adding/updating cluster(s) b: unknown thing",
    ];
    for text in wanted {
        assert!(list.contains(text), "{text}: {list}");
    }
    assert_eq!(list.lines().count(), 2, "{list}");
    assert!(!list.contains("TOP-SECRET"), "{list}");
    let history = running.answer(&["history"]).await;
    assert!(history.contains("refused by 1 client"), "{history}");
    let dump = running.get("/config_dump?type=cds").await;
    assert!(dump.contains("\"origin\":\"a.yaml:9 "), "{dump}");

    running
        .push(&clusters(&[("a", 1), ("b", 3), ("c", 1)]), 3)
        .await;
    let list = running.answer(&["nacks", "-o", "json"]).await;
    assert!(list.contains("\"isInForce\": false"), "{list}");
}

// A client that names nothing: the halves that it refuses lead to the culprit.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_client_refuses_without_a_name_is_found_and_traced() {
    let running = Running::start(
        Some(&clusters(&[("a", 1), ("b", 1), ("c", 1), ("d", 1)])),
        &[],
    )
    .await;
    let mut client = Client::connect(&running, "web").await;
    client.accept().await;
    let changed = clusters(&[("a", 2), ("b", 2), ("c", 2), ("d", 2)]);
    running.push(&changed, 2).await;
    let mut accepted = Vec::new();
    while accepted.len() < 3 {
        let response = client.next().await;
        let names = names(&response);
        if names.iter().any(|name| name == "b") {
            client.nack(&response, "no").await;
        } else {
            client.ack(&response).await;
            accepted.extend(names);
        }
    }
    accepted.sort_unstable();
    assert_eq!(accepted, ["a", "c", "d"], "the others flow");
    running
        .wait_for("/nacks", |it| it.contains("\"isSetAside\":true"))
        .await;
    let list = running.answer(&["nacks"]).await;
    assert!(list.contains(" b ") && list.contains("a.yaml:9 "), "{list}");
    let mut second = Client::connect(&running, "second").await;
    assert_eq!(second.accept().await.len(), 4, "with the old b among them");
}
