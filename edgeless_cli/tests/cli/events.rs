//! What users do with dead letters: `events dead list`, `retry` and `drop`.

use std::sync::atomic::Ordering;

use crate::fixture::{dead_letter, id};
use crate::reading::{cluster, component};

#[test]
fn dead_letters_are_listed_newest_first() {
    let (controller, _served, folder) = cluster();
    folder.run("events dead list").prints("");
    folder
        .run("events dead list --output json")
        .prints("{\n  \"letters\": [],\n  \"more\": 0,\n  \"troubles\": []\n}\n");
    *controller.dead.lock().unwrap() = vec![dead_letter(1, 3, b"poi\x1bson"), dead_letter(2, 12, b"\xff\x00")];
    let shown = folder.run("events dead list");
    let rows: Vec<Vec<_>> = shown.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!((shown.code, shown.stderr.as_str()), (0, ""));
    assert_eq!(rows[0], ["ID", "WORKFLOW", "COMPONENT", "OUTPUT", "SENT", "TRIES", "REASON", "SIZE", "PAYLOAD"]);
    let letter = |n: u32| format!("{}/{n}", component(7));
    assert_eq!(rows[1][..2], [letter(12), component(2)]);
    assert_eq!(
        shown.stdout.lines().last().unwrap().split_once(' ').unwrap().1.trim_start(),
        format!(
            "{}  counter    count   1970-01-01T00:00:03.000Z  5      the target has failed  7     poi\\u{{1b}}son",
            component(1)
        )
    );
    assert_eq!(rows[1].last(), Some(&"0xff00"));
    let of_one = folder.run(&format!("events dead list {}/counter --output json", id(1)));
    let json: serde_json::Value = serde_json::from_str(&of_one.stdout).unwrap();
    let expected = serde_json::json!({
        "letters": [{
            "id": letter(3), "workflow": component(1), "component": component(1), "name": "counter",
            "output": "count", "tries": 5, "reason": "the target has failed", "sent": "1970-01-01T00:00:03.000Z",
            "size": 7, "payload": "poi\u{1b}son", "payload_hex": null,
        }],
        "more": 0,
        "troubles": [],
    });
    assert_eq!(json, expected);
    let limited = folder.run("events dead list --limit 1 --output json");
    let json: serde_json::Value = serde_json::from_str(&limited.stdout).unwrap();
    assert_eq!((json["letters"].as_array().unwrap().len(), &json["more"]), (1, &serde_json::json!(1)));
    assert_eq!(json["letters"][0]["payload_hex"], "ff00");
}

#[test]
fn a_list_that_may_not_be_complete_says_so() {
    let (controller, _served, folder) = cluster();
    controller.troubles.lock().unwrap().push("domain away: cannot reach it".into());
    folder.run("events dead list").is(3, "", "warning: domain away: cannot reach it\n");
}

#[test]
fn dead_letters_are_sent_again_and_dropped_by_id_or_all() {
    let (controller, _served, folder) = cluster();
    let letter = |n: u32| format!("{}/{n}", component(7));
    *controller.dead.lock().unwrap() = (1..=6).map(|n| dead_letter(u128::from(n % 2), n, b"x")).collect();
    folder.run(&format!("events dead retry {}", letter(1))).prints("1 dead letter was sent again\n");
    let all = "`edgeless_cli events dead list` shows those there are";
    folder
        .run(&format!("events dead retry {}", letter(1)))
        .fails(1, &format!("error: there is no dead letter {}: {all}\n", letter(1)));
    folder.run(&format!("events dead drop {0} {1} {0}", letter(1), letter(2))).is(
        1,
        "1 dead letter was dropped\n",
        &format!("error: 1 of 2 dead letters are not there: {all}\n"),
    );
    folder.run(&format!("events dead drop --all {}", id(1))).prints("2 dead letters were dropped\n");
    controller.troubles.lock().unwrap().push("'counter': its outbox is full".into());
    folder.run("events dead retry --all").is(
        1,
        "2 dead letters were sent again\n",
        "warning: 'counter': its outbox is full\nerror: not all dead letters could be reached: try again\n",
    );
    controller.troubles.lock().unwrap().clear();
    folder.run("events dead drop --all --yes").prints("0 dead letters were dropped\n");
    let done = controller.done.lock().unwrap().clone();
    assert_eq!(done, ["Retry None", "Retry None", "Drop None", "Drop None", "Retry None", "Drop None"]);
}

#[test]
fn it_is_said_which_dead_letters_are_meant() {
    let (controller, _served, folder) = cluster();
    for wrong in ["events dead drop", "events dead retry", "events dead retry --all x", "events dead list --limit 0"] {
        assert_eq!(folder.run(wrong).code, 2, "{wrong}");
    }
    let wrong = folder.run("events dead drop x/1");
    assert_eq!(wrong.code, 2);
    assert!(wrong.stderr.contains("'x/1' is not the id of a dead letter"), "{}", wrong.stderr);
    let both = folder.run(&format!("events dead drop {}/1 --all", component(7)));
    assert_eq!(both.code, 2, "either these or all");
    assert!(controller.done.lock().unwrap().is_empty());
    controller.is_old.store(true, Ordering::Relaxed);
    let old = folder.run("events dead list");
    assert_eq!((old.code, old.stdout.as_str()), (1, ""));
    assert!(old.stderr.starts_with("error: no dead letters: "), "{}", old.stderr);
}
