//! Checks the files under `configs/deploy` and the packaging script: they name existing files and commands that the
//! program accepts, and they agree with each other. Docker, Apptainer and Kubernetes are not needed.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Parser;
use nnunet_dist::cli::Cli;
use yaml_rust2::{Yaml, YamlLoader};

use crate::skip::skip;

const VERSION: &str = env!("CARGO_PKG_VERSION");

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Asserts that the program accepts a command that starts with `nnunet-dist`.
#[track_caller]
fn understood(command: &[String]) {
    use clap::error::ErrorKind::{DisplayHelp, DisplayVersion};
    if let Err(error) = Cli::try_parse_from(command) {
        assert!([DisplayHelp, DisplayVersion].contains(&error.kind()), "{command:?}\n{error}");
    }
}

/// The commands of this project in a text of shell lines, after any other words.
fn commands(text: &str) -> Vec<Vec<String>> {
    let joined = text.replace("\\\n", " ");
    let lines = joined.lines().filter_map(|line| {
        let words = shlex::split(line.trim())?;
        let from = words.iter().rposition(|word| word == "nnunet-dist" || word == "nnunet-dist.sif")?;
        let to = words[from..].iter().position(|word| ["&&", ";", "|"].contains(&word.as_str()));
        let mut command = words[from..to.map_or(words.len(), |to| from + to)].to_vec();
        command[0] = "nnunet-dist".into();
        Some(command)
    });
    lines.filter(|command| command.len() > 1).collect()
}

/// Asserts that a shell parses a script, without running it.
#[track_caller]
fn is_shell(shell: &str, script: &str) {
    let mut child = Command::new(shell).arg("-n").stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{script}");
}

#[test]
fn scripts_are_shell() {
    for folder in ["scripts", "slurm"] {
        for entry in fs::read_dir(root().join(folder)).unwrap() {
            is_shell("bash", &fs::read_to_string(entry.unwrap().path()).unwrap());
        }
    }
}

/// The instructions of a Dockerfile, each on one line.
fn instructions() -> Vec<String> {
    let text = read("configs/deploy/docker/Dockerfile");
    let lines = text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
    lines.replace("\\\n", " ").lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

#[test]
fn the_dockerfile_copies_existing_files() {
    let ignored = read("configs/deploy/docker/Dockerfile.dockerignore");
    let kept: Vec<&str> = ignored.lines().filter_map(|line| line.strip_prefix('!')).collect();
    assert!(kept.len() > 5 && kept.iter().all(|path| root().join(path).exists()), "{kept:?}");
    let mut count = 0;
    for instruction in instructions() {
        let Some(words) = instruction.strip_prefix("COPY ").filter(|words| !words.starts_with("--from")) else {
            continue;
        };
        let words: Vec<&str> = words.split_whitespace().collect();
        for source in &words[..words.len() - 1] {
            count += 1;
            assert!(!matching(source).is_empty(), "{instruction}: no {source}");
            assert!(*source == "." || kept.iter().any(|path| source.starts_with(path)), "{source} is ignored");
        }
    }
    assert!(count > 5, "only {count} files are copied");
    // A build of a workspace needs each of its members and the files that their Cargo.toml names.
    for path in ["Cargo.lock", "Cargo.toml", "benches", "launcher", "rust-toolchain.toml", "src", "tests/gpu"] {
        assert!(kept.contains(&path), "{path} is ignored");
    }
}

/// The files of the repository that match a path with at most one `*`.
fn matching(pattern: &str) -> Vec<PathBuf> {
    let Some((before, after)) = pattern.split_once('*') else {
        let path = root().join(pattern);
        return if path.exists() { vec![path] } else { Vec::new() };
    };
    let (folder, prefix) = before.rsplit_once('/').unwrap_or((".", before));
    let names = fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
    let fits = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with(prefix) && name.ends_with(after)
    };
    names.filter(fits).collect()
}

#[test]
fn the_image_does_not_run_as_root_and_its_stages_exist() {
    let instructions = instructions();
    let of = |kind: &'static str| instructions.iter().filter_map(move |line| line.strip_prefix(kind));
    assert!(of("USER ").next_back().is_some_and(|user| user.starts_with("1000")), "{instructions:?}");
    let stages: Vec<&str> = of("FROM ").filter_map(|line| line.split(" AS ").nth(1)).collect();
    assert_eq!(stages, ["base-cuda", "base-cpu", "build", "final"]);
    for variant in ["cuda", "cpu"] {
        assert!(stages.contains(&format!("base-{variant}").as_str()), "{variant}");
    }
    for script in of("RUN ") {
        let script: Vec<&str> = script.split_whitespace().skip_while(|word| word.starts_with("--mount")).collect();
        is_shell("bash", &script.join(" "));
    }
    for features in of("ENV ").filter_map(|line| line.split("FEATURES=").nth(1)) {
        let name = features.strip_prefix("nnunet-dist/").unwrap();
        assert!(read("Cargo.toml").lines().any(|line| line.starts_with(&format!("{name} = ["))), "no feature {name}");
    }
}

/// The sections of an Apptainer recipe: header and lines.
fn sections() -> Vec<(String, Vec<String>)> {
    let mut sections: Vec<(String, Vec<String>)> = Vec::new();
    for line in read("configs/deploy/apptainer/nnunet-dist.def").lines() {
        if line.starts_with('%') || line.starts_with("Bootstrap:") {
            sections.push((line.to_owned(), Vec::new()));
        } else if let Some((_, lines)) = sections.last_mut() {
            lines.push(line.to_owned());
        }
    }
    sections
}

#[test]
fn the_apptainer_recipe_is_whole() {
    let sections = sections();
    for wanted in ["%files", "%files from build", "%post", "%environment", "%runscript", "%test", "%help"] {
        assert!(sections.iter().any(|(header, _)| header == wanted), "no {wanted}");
    }
    for (header, lines) in &sections {
        let text = lines.join("\n");
        match header.as_str() {
            "%files" => {
                for line in lines.iter().filter(|line| !line.trim().is_empty()) {
                    let source = line.split_whitespace().next().unwrap();
                    assert!(root().join(source).exists(), "no {source}");
                }
            }
            "%post" | "%environment" | "%runscript" | "%test" => is_shell("sh", &text),
            _ => {}
        }
        if ["%test", "%help"].contains(&header.as_str()) {
            let commands = commands(&text);
            assert!(commands.len() > 2, "{header}: {commands:?}");
            commands.iter().for_each(|command| understood(command));
        }
    }
}

fn documents(path: &str) -> Vec<Yaml> {
    YamlLoader::load_from_str(&read(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn strings(list: &Yaml) -> Vec<String> {
    list.as_vec().unwrap().iter().map(|item| item.as_str().unwrap_or_else(|| panic!("{item:?}")).to_owned()).collect()
}

/// Asserts the common properties of a pod: not root, no privilege escalation, the volume mounted, a placeholder image.
fn is_modest(pod: &Yaml) {
    assert_eq!(pod["securityContext"]["runAsNonRoot"].as_bool(), Some(true));
    assert_eq!(pod["securityContext"]["runAsUser"].as_i64(), Some(1000));
    let container = &pod["containers"][0];
    assert_eq!(container["image"].as_str(), Some("IMAGE"));
    assert_eq!(container["securityContext"]["allowPrivilegeEscalation"].as_bool(), Some(false));
    assert!(container["resources"]["limits"]["memory"].as_str().is_some());
    let volumes: Vec<&str> =
        pod["volumes"].as_vec().unwrap().iter().map(|each| each["name"].as_str().unwrap()).collect();
    for mount in container["volumeMounts"].as_vec().unwrap() {
        assert!(volumes.contains(&mount["name"].as_str().unwrap()), "{mount:?}");
    }
    let claim = pod["volumes"][0]["persistentVolumeClaim"]["claimName"].as_str();
    assert_eq!(claim, documents("configs/deploy/kubernetes/prepare.yaml")[0]["metadata"]["name"].as_str());
}

#[test]
fn the_kubernetes_jobs_prepare_and_train_the_same_data() {
    let prepare = documents("configs/deploy/kubernetes/prepare.yaml");
    let [volume, job] = prepare.as_slice() else { panic!("{prepare:?}") };
    assert_eq!(volume["spec"]["accessModes"][0].as_str(), Some("ReadWriteMany"));
    assert_eq!((job["apiVersion"].as_str(), job["kind"].as_str()), (Some("batch/v1"), Some("Job")));
    let pod = &job["spec"]["template"]["spec"];
    is_modest(pod);
    let script = strings(&pod["containers"][0]["args"]).join("\n");
    is_shell("bash", &script);
    let commands = commands(&script);
    assert_eq!(commands.iter().map(|command| command[1].as_str()).collect::<Vec<_>>(), ["plan", "preprocess"]);
    commands.iter().for_each(|command| understood(command));
    let work = |words: &[String]| words.iter().skip_while(|word| *word != "-w").nth(1).cloned();
    assert_eq!(work(&commands[1]), work(&training()));
}

/// The command of the launcher's pod, as words.
fn training() -> Vec<String> {
    let job = documents("configs/deploy/kubernetes/train.yaml").remove(0);
    let container = &job["spec"]["mpiReplicaSpecs"]["Launcher"]["template"]["spec"]["containers"][0];
    assert_eq!(strings(&container["command"]), ["nnunet-launch"]);
    let words = strings(&container["args"]);
    let dashes = words.iter().position(|word| word == "--").unwrap();
    let mut command = words[dashes..].to_vec();
    command[0] = "nnunet-dist".into();
    command
}

#[test]
fn the_mpi_job_survives_lost_workers() {
    let documents = documents("configs/deploy/kubernetes/train.yaml");
    let [job] = documents.as_slice() else { panic!("{documents:?}") };
    assert_eq!((job["apiVersion"].as_str(), job["kind"].as_str()), (Some("kubeflow.org/v2beta1"), Some("MPIJob")));
    let spec = &job["spec"];
    let replicas = &spec["mpiReplicaSpecs"];
    for kind in ["Launcher", "Worker"] {
        assert_eq!(replicas[kind]["restartPolicy"].as_str(), Some("OnFailure"), "{kind}");
        is_modest(&replicas[kind]["template"]["spec"]);
    }
    assert_eq!(spec["launcherCreationPolicy"].as_str(), Some("WaitForWorkersReady"));
    let command = training();
    understood(&command);
    assert!(command.contains(&"--resume=auto".to_owned()), "a launcher that is started again goes on: {command:?}");

    let pod = &replicas["Worker"]["template"]["spec"];
    let worker = &pod["containers"][0];
    assert_eq!(worker["resources"]["limits"]["nvidia.com/gpu"].as_i64(), spec["slotsPerWorker"].as_i64());
    let mounts = worker["volumeMounts"].as_vec().unwrap();
    let shared = mounts.iter().find(|mount| mount["mountPath"].as_str() == Some("/dev/shm")).unwrap();
    let volumes = pod["volumes"].as_vec().unwrap();
    let memory = volumes.iter().find(|volume| volume["name"] == shared["name"]).unwrap();
    assert_eq!(memory["emptyDir"]["medium"].as_str(), Some("Memory"));

    // The image's sshd, its clients and the probe use the same port and the same key.
    let server = read("configs/deploy/docker/sshd_config");
    let port = worker["readinessProbe"]["tcpSocket"]["port"].as_i64().unwrap();
    for text in [&server, &read("configs/deploy/docker/ssh_config")] {
        assert!(text.lines().any(|line| line.trim() == format!("Port {port}")), "{text}");
    }
    let keys = spec["sshAuthMountPath"].as_str().unwrap();
    assert!(server.contains(&format!("HostKey {keys}/id_rsa")), "{server}");
    let config = strings(&worker["args"]).pop().unwrap();
    assert!(instructions().iter().any(|line| line.starts_with("COPY") && line.ends_with(&config)), "no {config}");
}

/// The folder, relative to the root of a module, that is prepended to a variable; reads both kinds of module file.
fn prepended(calls: &str, variable: &str) -> String {
    let line = calls.lines().find(|line| line.split_whitespace().nth(1) == Some(variable));
    let line = line.unwrap_or_else(|| panic!("no {variable} in\n{calls}"));
    line.split_whitespace().nth(2).unwrap().to_owned()
}

/// Asserts that the calls refer to the folders that `scripts/package` makes.
fn leads_to_the_package(calls: &str) {
    assert_eq!(prepended(calls, "PATH"), "/opt/test/bin");
    assert_eq!(prepended(calls, "NNUNET_DIST_HOME"), "/opt/test/share/nnunet-dist");
    let package = read("scripts/package");
    for folder in ["\"$staged/bin/\"", "$share/man/man1", "$share/nnunet-dist/slurm", "$share/nnunet-dist/configs"] {
        assert!(package.contains(folder), "scripts/package makes no {folder}");
    }
}

/// The output of an interpreter for a module file after `prelude`; `None`, with a printed line, if no interpreter is
/// installed.
fn interpreted(interpreters: &[&str], prelude: &str, module: &str) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("module");
    fs::write(&path, prelude.to_owned() + &read(module)).unwrap();
    for interpreter in interpreters {
        let Ok(output) = Command::new(interpreter).arg(&path).env("NNUNET_DIST_ROOT", "/opt/test").output() else {
            continue;
        };
        assert!(output.status.success(), "{module}: {}", String::from_utf8_lossy(&output.stderr));
        return Some(String::from_utf8(output.stdout).unwrap());
    }
    skip(format_args!("{module} needs one of {}", interpreters.join(", ")));
    None
}

#[test]
fn the_tcl_module_leads_to_the_package() {
    const PRELUDE: &str = "foreach name {prepend-path setenv} { proc $name args \"puts \\\"$name \\$args\\\"\" }
foreach name {module-whatis conflict prereq} { proc $name args {} }\n";
    let module = format!("configs/deploy/modulefiles/nnunet-dist/{VERSION}");
    assert!(read(&module).starts_with("#%Module1.0\n"));
    assert!(read(&module).contains(&format!("set root /opt/nnunet-dist/{VERSION}\n")));
    if let Some(calls) = interpreted(&["tclsh"], PRELUDE, &module) {
        leads_to_the_package(&calls);
    }
}

#[test]
fn the_lua_module_leads_to_the_package() {
    const PRELUDE: &str = "function pathJoin(...) return table.concat({...}, '/') end
function prepend_path(name, value) print('prepend_path', name, value) end
function setenv(name, value) print('setenv', name, value) end
for _, name in ipairs({'help', 'whatis', 'conflict', 'depends_on'}) do _ENV[name] = function() end end\n";
    let module = format!("configs/deploy/modulefiles/nnunet-dist/{VERSION}.lua");
    assert!(read(&module).contains(&format!("\"/opt/nnunet-dist/{VERSION}\"")));
    if let Some(calls) = interpreted(&["lua5.4", "lua5.3", "lua"], PRELUDE, &module) {
        leads_to_the_package(&calls);
    }
}

#[test]
fn the_debian_package_installs_the_staging_tree() {
    let manifest: toml::Table = read("Cargo.toml").parse().unwrap();
    let package = &manifest["package"]["metadata"]["deb"];
    let dependencies = package["depends"].as_str().unwrap();
    assert!(dependencies.contains("$auto") && dependencies.contains("openmpi-bin"), "{dependencies}");
    assert_eq!(package["recommends"].as_str(), Some("libdnnl2"));
    assert!(root().join(package["license-file"][0].as_str().unwrap()).exists());
    let script = read("scripts/package");
    for asset in package["assets"].as_array().unwrap() {
        let source = asset[0].as_str().unwrap();
        match source.strip_prefix("dist/package/") {
            // The script makes each folder of the staging tree.
            Some(path) => {
                let names = path.trim_end_matches(['*', '/']).split('/').filter(|name| *name != "share");
                names.for_each(|name| assert!(script.contains(name), "scripts/package makes no {name}"));
            }
            None => assert!(root().join(source).exists(), "no {source}"),
        }
    }
}
