//! The program itself: help, templates, configuration, exit codes, pipes.

use std::process::Stdio;
use std::time::{Duration, Instant};

use super::fixture::{Controller, Ended, Folder, Served, nobody};

const TEMPLATE: &str = "\
# Where the controller (edgeless_con_d) takes requests.
controller_url = \"http://127.0.0.1:7001\"
";

#[test]
fn without_a_command_it_says_what_can_be_done() {
    let ended = Folder::new().run("");
    assert_eq!((ended.code, ended.stderr.as_str()), (0, ""));
    assert!(ended.stdout.starts_with("Start, watch and stop workflows"), "{}", ended.stdout);
    assert!(ended.stdout.contains("\nExamples:\n"), "{}", ended.stdout);
}

#[test]
fn the_version_is_that_of_the_platform() {
    Folder::new().run("--version").prints(concat!("edgeless_cli ", env!("CARGO_PKG_VERSION"), "\n"));
}

#[test]
fn a_wrong_command_is_told_with_what_was_probably_meant() {
    let ended = Folder::new().run("workflow strat x.json");
    assert_eq!((ended.code, ended.stdout.as_str()), (2, ""));
    assert!(ended.stderr.contains("a similar subcommand exists: 'start'"), "{}", ended.stderr);
}

#[test]
fn a_template_is_written_and_never_over_another_file() {
    let folder = Folder::new();
    folder.run("-t cli.toml").prints("");
    assert_eq!(folder.read("cli.toml"), TEMPLATE);
    folder.write("cli.toml", "mine");
    folder.run("-t cli.toml").fails(1, "error: cannot overwrite configuration file: cli.toml\n");
    assert_eq!(folder.read("cli.toml"), "mine");
    folder
        .run("-t no/such/cli.toml")
        .fails(1, "error: cannot write the configuration file no/such/cli.toml: no such file or directory\n");
}

#[test]
fn a_missing_configuration_is_told_with_how_to_write_one() {
    Folder::new().run("workflow list").fails(
        2,
        "error: cannot read the configuration file cli.toml: no such file or directory; `edgeless_cli -t cli.toml` \
         writes one, `-c` names another, `--controller-url` does without\n",
    );
}

#[test]
fn a_mistake_in_the_configuration_is_told_with_its_line() {
    let folder = Folder::new().with("my.toml", "controller_url = \"http://127.0.0.1:1\"\nurl = \"x\"\n");
    folder.run("-c my.toml workflow list").fails(
        2,
        "error: in the configuration file my.toml: TOML parse error at line 2, column 1\n  |\n2 | url = \"x\"\n  | \
         ^^^\nunknown field `url`, expected `controller_url` or `function_repository`\n",
    );
    folder.write("my.toml", "");
    folder.run("-c my.toml workflow list").fails(
        2,
        "error: in the configuration file my.toml: controller_url is missing, http://127.0.0.1:7001 for example\n",
    );
}

#[test]
fn the_controller_may_be_named_in_four_ways() {
    let controller = Controller::new();
    let served = Served::controller(&controller);
    let url = served.url.to_string();
    let empty = Folder::new();
    Ended::of(empty.program(["workflow", "list", "--controller-url", &url])).prints("");
    let mut command = empty.program(["workflow", "list"]);
    command.env("EDGELESS_CLI__CONTROLLER_URL", &url);
    Ended::of(command).prints("");
    let folder = empty
        .with("cli.toml", format!("controller_url = \"{url}\"\n[function_repository]\nurl = \"\"\napi_key = \"\"\n"));
    folder.run("workflow list").prints("");
    std::fs::rename(folder.path("cli.toml"), folder.path("other.toml")).unwrap();
    folder.run("workflow list -c other.toml").prints("");
}

#[test]
fn a_controller_out_of_reach_is_told_within_seconds() {
    let url = nobody();
    let folder = Folder::new().with("cli.toml", format!("controller_url = \"{url}\"\n"));
    let message = format!(
        "error: cannot reach {url}: connection refused; is edgeless_con_d running? cli.toml or --controller-url says \
         where it is\n"
    );
    let begun = Instant::now();
    for command in ["workflow list", "domain list", "node list", "workflow stop all", "workflow inspect all"] {
        folder.run(command).fails(3, &message);
    }
    folder.write("workflow.json", super::fixture::WORKFLOW);
    folder.write("count.wasm", b"\0asm");
    let waiting = format!("waiting: cannot reach {url}: connection refused\n{message}");
    folder.run("workflow start workflow.json").fails(3, &waiting);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let controller = Controller::new();
    let served = Served::controller(&controller);
    let folder = Folder::for_controller(&served);
    folder.run("workflow start workflow.json");
    for command in [&["workflow", "list"][..], &["domain", "list"], &[]] {
        let mut child = folder.program(command).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]), "{command:?}");
    }
}
