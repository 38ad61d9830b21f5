//! What programs print for other programs, and for shells.

use std::{fs, process::Command};

use rustix::process::Signal;
use serde_json::Value;

use crate::engine::{Engine, Output, output, program};

/// The object in DAOS's form that a program printed.
#[track_caller]
fn parsed(output: &Output) -> Value {
    assert_eq!(output.stderr, "", "{output:?}");
    let value: Value =
        serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    let keys: Vec<_> = value.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["error", "response", "status"]);
    value
}

/// Names of all commands, as the help of a program lists them: `pool query` and so on.
fn commands(name: &str, of: &[&str]) -> Vec<String> {
    let help = output(program(name).args(of).arg("--help"), b"").ok();
    let Some((_, list)) = help.split_once("Commands:\n") else { return vec![of.join(" ")] };
    let lines = list.lines().take_while(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = lines.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help");
    names.flat_map(|sub| commands(name, &[of, &[sub]].concat())).collect()
}

pub fn every_command() {
    let mut engine = Engine::start();
    let source = engine.scratch().join("source");
    fs::write(&source, "bytes").expect("written");
    let source = source.display().to_string();
    let back = engine.scratch().join("back").display().to_string();
    // (program, arguments that work, and how to make them fail by another last argument.)
    let dmg: &[(&[&str], Option<&str>)] = &[
        (&["system", "query"], None),
        (&["pool", "create", "--size", "256MiB", "tank"], Some("tank")),
        (&["pool", "list"], None),
        (&["pool", "query", "tank"], Some("absent")),
        (&["storage", "query", "usage"], None),
        (&["telemetry", "metrics"], None),
    ];
    let daos: &[(&[&str], Option<&str>)] = &[
        (&["pool", "query", "tank"], Some("absent")),
        (&["container", "create", "tank", "box"], Some("box")),
        (&["container", "create", "--type", "POSIX", "tank", "tree"], Some("no label")),
        (&["pool", "list-containers", "tank"], Some("absent")),
        (&["container", "list", "tank"], Some("absent")),
        (&["container", "query", "tank", "box"], Some("absent")),
        (&["kv", "put", "--epoch", "9", "tank", "box", "1", "key", "value"], Some("value")),
        (&["kv", "get", "tank", "box", "1", "key"], Some("absent")),
        (&["kv", "list", "tank", "box", "1"], Some("banana")),
        (&["kv", "del", "tank", "box", "1", "key"], None),
        (&["array", "write", "tank", "box", "2", "--input", &source], Some("/absent")),
        (&["array", "read", "tank", "box", "2"], Some("banana")),
        (&["object", "list", "tank", "box"], Some("absent")),
        (&["container", "create-snap", "tank", "box"], Some("absent")),
        (&["container", "list-snaps", "tank", "box"], Some("absent")),
        (&["container", "destroy-snap", "--epoch", "9", "tank", "box"], Some("absent")),
        (
            &["filesystem", "copy", "--src", &source, "--dst", "daos://tank/tree/file"],
            Some("daos://absent/tree/file"),
        ),
        (
            &["filesystem", "copy", "--src", "daos://tank/tree/file", "--dst", &back],
            Some("/absent/folder/back"),
        ),
        (&["filesystem", "list", "daos://tank/tree/"], Some("daos://tank/tree/absent")),
        (&["filesystem", "stat", "daos://tank/tree/file"], Some("daos://tank/tree/absent")),
        (&["container", "destroy", "tank", "box"], Some("box")),
    ];
    let last: &[(&[&str], Option<&str>)] = &[
        (&["pool", "destroy", "tank"], Some("tank")),
        (&["storage", "format"], None),
        (&["system", "stop"], None),
    ];
    let mut untried: Vec<String> = Vec::new();
    for name in ["daos", "dmg"] {
        let all = commands(name, &[]).into_iter().filter(|command| command != "completion");
        untried.extend(all.map(|command| format!("{name} {command}")));
    }
    assert!(untried.len() > 20, "{untried:?}");
    for (name, list) in [("dmg", dmg), ("daos", daos), ("dmg", last)] {
        for (arguments, wrong) in list {
            let words = format!("{name} {}", arguments.join(" "));
            untried.retain(|command| !words.starts_with(command.as_str()));
            let output = engine.run(name, &[&["--json"], *arguments].concat());
            let value = parsed(&output);
            let format_again = words == "dmg storage format";
            if format_again {
                assert!(output.code == Some(1) && value["error"].is_string(), "{words}: {value}");
            } else {
                assert_eq!(output.code, Some(0), "{words}: {value}");
                assert!(value["error"].is_null() && value["status"] == 0, "{words}: {value}");
                assert!(!value["response"].is_null(), "{words}: {value}");
            }
            let Some(wrong) = wrong else { continue };
            let wrong = [&arguments[..arguments.len() - 1], &[*wrong, "-j"]].concat();
            let output = engine.run(name, &wrong);
            let value = parsed(&output);
            assert_eq!(output.code, Some(1), "{wrong:?}: {value}");
            assert!(value["response"].is_null() && value["error"].is_string(), "{wrong:?}: {value}");
            assert!(value["status"].as_i64().is_some_and(|status| status > 0), "{wrong:?}: {value}");
        }
    }
    assert_eq!(untried, [""; 0], "commands without a test");
    // A wrong command line, and no engine.
    let output = engine.dmg(&["pool", "create", "-j", "--size", "plenty", "tank"]);
    assert_eq!(output.code, Some(2));
    let value = parsed(&output);
    assert!(value["status"] == 22 && value["error"].as_str().expect("text").contains("plenty"), "{value}");
    assert!(engine.end().success(), "`dmg system stop` ends it");
    let output = engine.daos(&["-j", "pool", "query", "tank"]);
    assert!(output.code == Some(1) && parsed(&output)["status"] == 111, "{output:?}");
    engine.start_again();
    assert!(engine.signal(Signal::INT).success());
}

pub fn completion() {
    for name in ["daos", "dmg"] {
        let script = output(program(name).args(["completion", "bash"]), b"").ok();
        // What bash does when somebody presses the tabulator key.
        let press = |words: &str| {
            let count = words.split(' ').count();
            let word = words.rsplit(' ').next().expect("a word");
            format!(
                "{script}\nCOMP_WORDS=({words}); [ -n '{word}' ] || COMP_WORDS+=(''); COMP_CWORD={}; COMPREPLY=()\n\
                 _{name} {name} '{word}' ''; echo \"${{COMPREPLY[@]}}\"",
                count - 1
            )
        };
        let typed = |words: &str| output(Command::new("bash").arg("-c").arg(press(words)), b"").ok();
        assert_eq!(typed(&format!("{name} po")).trim_end(), "pool");
        let subcommands = typed(&format!("{name} pool "));
        assert!(subcommands.contains("query"), "{subcommands:?}");
        for shell in ["zsh", "fish"] {
            let script = output(program(name).args(["completion", shell]), b"").ok();
            assert!(script.contains("telemetry") || script.contains("filesystem"), "{shell}: {script}");
        }
    }
}
