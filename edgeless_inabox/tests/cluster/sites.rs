//! The examples that need several processes, run as their READMEs say, with free ports.

use std::collections::BTreeMap;
use std::path::Path;

use super::programs::{Program, cli, free_port};
use super::support::{lines, repository, wait_until};

/// The processes of an example, in the order of `sites`, in a folder of their own.
struct Sites {
    directory: tempfile::TempDir,
    _programs: Vec<Program>,
}

impl Sites {
    fn start(example: &str, sites: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut ports = BTreeMap::new();
        for site in sites {
            copy(&repository().join("examples").join(example).join(site), &directory.path().join(site), &mut ports);
        }
        let controller = ports[&7001];
        std::fs::write(
            directory.path().join("cli.toml"),
            format!("controller_url = \"http://127.0.0.1:{controller}\"\n"),
        )
        .unwrap();
        let start = |site: &&str| Program::start("edgeless_inabox", directory.path(), &["--config-path", site]);
        let programs = sites.iter().map(start).collect();
        Self { directory, _programs: programs }
    }

    fn cli(&self, arguments: &[&str]) -> String {
        cli(self.directory.path(), arguments)
    }

    /// Builds what an example needs and starts it.
    fn run(&self, example: &str) -> String {
        let workflow = repository().join("examples").join(example).join("workflow.json");
        let text = std::fs::read_to_string(&workflow).unwrap();
        for function in text.split("functions/").skip(1).filter_map(|part| part.split('/').next()) {
            let file = repository().join("functions").join(function).join("function.json");
            self.cli(&["function", "build", file.to_str().unwrap()]);
        }
        self.cli(&["workflow", "start", "--strict", workflow.to_str().unwrap()]).trim().to_string()
    }

    fn file(&self, name: &str) -> Vec<String> {
        lines(&self.directory.path().join(name))
    }
}

/// Copies the configuration files of a site; each port is replaced by a free one, the same in all files.
fn copy(from: &Path, to: &Path, ports: &mut BTreeMap<u16, u16>) {
    const ADDRESS: &str = "http://127.0.0.1:";
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let mut parts = text.split(ADDRESS);
        let mut copied = parts.next().unwrap().to_string();
        for part in parts {
            let end = part.find(|c: char| !c.is_ascii_digit()).unwrap();
            let port = ports.entry(part[..end].parse().unwrap()).or_insert_with(free_port);
            copied.push_str(&format!("{ADDRESS}{port}{}", &part[end..]));
        }
        std::fs::write(to.join(path.file_name().unwrap()), copied).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_domains_share_a_workflow() {
    let sites = Sites::start("two_domains", &["factory", "office"]);
    wait_until("both domains have their node", || async {
        sites.cli(&["domain", "list"]) == "domain factory (1 nodes)\ndomain office (1 nodes)\n"
    })
    .await;
    let id = sites.run("two_domains");
    let inspected = sites.cli(&["workflow", "inspect", &id]);
    for line in ["MAP sensor -> factory", "MAP scale -> factory", "MAP total -> office", "MAP log -> office"] {
        assert!(inspected.contains(line), "{line}\n{inspected}");
    }
    wait_until("numbers are counted", || async { sites.file("total.log").len() >= 3 }).await;
    assert_eq!(sites.file("total.log")[..3], ["1", "2", "3"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_nested_domain_runs_what_is_started_at_the_top() {
    let sites = Sites::start("nested", &["campus", "building", "room"]);
    // The domains, since the controller hears of what they can run a moment after their nodes are there.
    wait_until("the campus can run it", || async { sites.cli(&["domain", "inspect", "all"]).contains("RUST_WASM") })
        .await;
    let id = sites.run("nested");
    wait_until("numbers are doubled", || async { sites.file("doubled.log").len() >= 3 }).await;
    assert_eq!(sites.file("doubled.log")[..3], ["2", "4", "6"]);
    sites.cli(&["workflow", "stop", &id]);
}
