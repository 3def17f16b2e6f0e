//! Does what the command line says, one answer for each.

use std::collections::BTreeMap;
use std::io::Write;

use clap::CommandFactory;
use pollux_api::FieldMask;
use pollux_api::control::v1::templates_client::TemplatesClient;
use pollux_api::control::v1::volumes_client::VolumesClient;
use pollux_api::control::v1::*;
use pollux_api::qos::{Counted, Direction, Limit};
use tokio_stream::StreamExt;
use tonic::Code;

use crate::model::{Record, VOLATILE, is_volatile};

use super::connection::{Access, Channel, CommandError, connect};
use super::output::{Changing, Output, records, serialized, table, words};
use super::resource::{Changed, Listed, Named, all};
use super::{
    AwaitedArguments, Cli, Command, DeleteArguments, GroupSnapshotVerb, GroupVerb, ListArguments, ListVerb,
    Media, NodeVerb, PolicyArguments, PoolVerb, RemovalArguments, ScheduleArguments, SnapshotVerb,
    TemplateVerb, VolumeArguments, VolumeVerb, WaitArguments, apply, certificates, limits, rebalance,
    recover, replicas, support, tokens, top, up, wait,
};

/// A connection, and how answers are told.
struct Session<'a, W> {
    channel: Channel,
    output: Output,
    into: &'a mut W,
}

/// A label as KEY=VALUE.
pub(super) fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("give KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

fn labelled<R: Record>(mut record: R, name: &str, labels: &[(String, String)]) -> R {
    let metadata = record.meta_mut();
    metadata.name = name.to_owned();
    metadata.labels = labels.iter().cloned().collect::<BTreeMap<_, _>>();
    record
}

fn named<R: Record>(record: R, name: &str) -> R {
    labelled(record, name, &[])
}

/// Does what the command line says.
pub(super) async fn run(cli: Cli, into: &mut impl Write) -> Result<(), CommandError> {
    match &cli.command {
        Command::Cert { command } => return certificates::run(command, into),
        Command::Up(arguments) => return up::up(arguments, &cli.control, into).await,
        Command::Demo(arguments) => return up::demo::demo(arguments, into).await,
        Command::Under(arguments) => return up::under(arguments).map(|never| match never {}),
        Command::Completion { shell } => {
            // It does not stand that nobody reads it to the end: so it is made first.
            let mut text = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "pollux", &mut text);
            return Ok(into.write_all(&text)?);
        }
        Command::Man { directory } => {
            let made = std::fs::create_dir_all(directory)
                .and_then(|()| clap_mangen::generate_to(Cli::command(), directory));
            return made.map_err(|error| CommandError::File {
                path: directory.clone(),
                reason: error.to_string(),
            });
        }
        _ => {}
    }
    let access = Access {
        address: cli.control.clone(),
        certificates: cli.certificates.clone(),
        token_file: cli.token_file.clone(),
    };
    let channel = connect(&access).await?;
    let mut session = Session {
        channel,
        output: cli.output,
        into,
    };
    match &cli.command {
        Command::Node { verb } => session.node(verb).await,
        Command::Pool { verb } => session.pool(verb).await,
        Command::Volume { verb } => session.volume(verb).await,
        Command::Snapshot { verb } => session.snapshot(verb).await,
        Command::Group { verb } => session.group(verb).await,
        Command::Template { verb } => session.template(verb).await,
        Command::Event {
            verb: ListVerb::List(arguments),
        } => session.list::<Event>(arguments).await,
        Command::Top(arguments) => top::run(&session.channel, arguments, session.output, session.into).await,
        Command::Rebalance { command } => {
            rebalance::run(&session.channel, command, session.output, session.into).await
        }
        Command::Recover(arguments) => {
            recover::run(&session.channel, arguments, session.output, session.into).await
        }
        Command::Support(arguments) => support::run(&session.channel, arguments, session.into).await,
        Command::Token { command } => {
            tokens::run(&session.channel, command, session.output, session.into).await
        }
        Command::Plan(arguments) => session.plan(arguments).await,
        Command::Apply(arguments) => apply::apply(&session.channel, arguments, session.into).await,
        // Done above, without a connection.
        Command::Up(_)
        | Command::Demo(_)
        | Command::Under(_)
        | Command::Cert { .. }
        | Command::Completion { .. }
        | Command::Man { .. } => Ok(()),
    }
}

impl<W: Write> Session<'_, W> {
    fn show<R: super::output::Row>(&mut self, record: R) -> Result<(), CommandError> {
        records(&[record], self.output, self.into)
    }

    /// Tells of a record as it is, or as it came to be if that is to be waited for.
    async fn show_when<R: Named>(
        &mut self,
        record: R,
        waiting: &WaitArguments,
        until: impl AsyncFnOnce(&Channel, &str, u64) -> Result<R, CommandError>,
    ) -> Result<(), CommandError> {
        let shown = match waiting.wait {
            true => until(&self.channel, record.name(), waiting.timeout).await?,
            false => record,
        };
        self.show(shown)
    }

    async fn list<R: Listed>(&mut self, arguments: &ListArguments) -> Result<(), CommandError> {
        if !arguments.watch {
            let found = all::<R>(&self.channel).await?;
            return records(&found, self.output, self.into);
        }
        let mut changes = R::watch(self.channel.clone()).await?;
        let mut told = Changing::new(self.output, &all::<R>(&self.channel).await?);
        while let Some(change) = changes.next().await {
            match change? {
                Ok(record) => told.tell(&record, self.into)?,
                Err(name) => told.gone::<R>(&name, self.into)?,
            }
            self.into.flush()?;
        }
        Err(CommandError::Refused("the control plane has ended".to_owned()))
    }

    /// All there is to tell: as YAML, unless JSON is asked for.
    async fn get<R: Named>(&mut self, name: &str) -> Result<(), CommandError> {
        let record = R::get(self.channel.clone(), name.to_owned()).await?;
        let output = match self.output {
            Output::Json => Output::Json,
            Output::Table | Output::Wide | Output::Yaml => Output::Yaml,
        };
        serialized(&record, output, self.into)
    }

    async fn create<R: Named>(&mut self, record: R) -> Result<(), CommandError> {
        let created = R::create(self.channel.clone(), record).await?;
        self.show(created)
    }

    /// Whether there is a record to be deleted. The control plane takes a name that is none for one that is
    /// gone already; a person may have misspelt it.
    async fn is_there<R: Named>(&mut self, what: &DeleteArguments) -> Result<bool, CommandError> {
        match R::get(self.channel.clone(), what.name.clone()).await {
            Ok(_) => Ok(true),
            Err(status) if status.code() == Code::NotFound && what.if_exists => {
                writeln!(self.into, "there is no {} {}", words::<R>(), what.name)?;
                Ok(false)
            }
            Err(status) => Err(status.into()),
        }
    }

    async fn delete<R: Named>(&mut self, what: &DeleteArguments) -> Result<(), CommandError> {
        if self.is_there::<R>(what).await? {
            R::delete(self.channel.clone(), what.name.clone()).await?;
            writeln!(self.into, "{} {} is deleted", words::<R>(), what.name)?;
        }
        Ok(())
    }

    /// Deletes what takes its time, and waits for that if it is asked for.
    async fn remove<R: Named>(&mut self, removal: &RemovalArguments) -> Result<(), CommandError> {
        let (what, waiting) = (&removal.what, &removal.wait);
        if !waiting.wait {
            return self.delete::<R>(what).await;
        }
        if self.is_there::<R>(what).await? {
            R::delete(self.channel.clone(), what.name.clone()).await?;
            wait::gone::<R>(&self.channel, &what.name, waiting.timeout).await?;
            writeln!(self.into, "{} {} is gone", words::<R>(), what.name)?;
        }
        Ok(())
    }

    async fn update<R: Changed>(&mut self, record: R, path: &str) -> Result<(), CommandError> {
        let updated = R::update(self.channel.clone(), record, vec![path.to_owned()]).await?;
        self.show(updated)
    }

    async fn node(&mut self, verb: &NodeVerb) -> Result<(), CommandError> {
        let with = |cordoned, drained| NodeSpec {
            cordoned,
            drained,
            ..NodeSpec::default()
        };
        let node = |name: &str, spec| {
            let node = Node {
                spec: Some(spec),
                ..Node::default()
            };
            named(node, name)
        };
        match verb {
            NodeVerb::List(arguments) => self.list::<Node>(arguments).await,
            NodeVerb::Get(one) => self.get::<Node>(&one.name).await,
            NodeVerb::Create {
                name,
                address,
                zone,
                rack,
                label,
            } => {
                let spec = NodeSpec {
                    address: address.clone(),
                    zone: zone.clone(),
                    rack: rack.clone(),
                    ..NodeSpec::default()
                };
                self.create(labelled(node(name, spec), name, label)).await
            }
            NodeVerb::Cordon(one) => {
                self.update(node(&one.name, with(true, false)), "spec.cordoned")
                    .await
            }
            NodeVerb::Uncordon(one) => {
                self.update(node(&one.name, with(false, false)), "spec.cordoned")
                    .await
            }
            NodeVerb::Drain(AwaitedArguments { name, wait: waiting }) => {
                let paths = vec!["spec.drained".to_owned()];
                let drained = node(name, with(false, true));
                let drained = Node::update(self.channel.clone(), drained, paths).await?;
                self.show_when(drained, waiting, wait::node_empty).await
            }
            NodeVerb::Undrain(one) => {
                self.update(node(&one.name, with(false, false)), "spec.drained")
                    .await
            }
            NodeVerb::Delete(one) => self.delete::<Node>(one).await,
        }
    }

    async fn pool(&mut self, verb: &PoolVerb) -> Result<(), CommandError> {
        let with = |cordoned, drained| PoolSpec {
            cordoned,
            drained,
            ..PoolSpec::default()
        };
        let pool = |name: &str, spec| {
            let pool = Pool {
                spec: Some(spec),
                ..Pool::default()
            };
            named(pool, name)
        };
        match verb {
            PoolVerb::List(arguments) => self.list::<Pool>(arguments).await,
            PoolVerb::Get(one) => self.get::<Pool>(&one.name).await,
            PoolVerb::Create {
                name,
                node,
                devices,
                media,
                label,
                wait: waiting,
            } => {
                let media = media.map_or(MediaClass::Unspecified, |media| match media {
                    Media::Nvme => MediaClass::Nvme,
                    Media::Ssd => MediaClass::Ssd,
                    Media::Hdd => MediaClass::Hdd,
                    Media::Scratch => MediaClass::Scratch,
                });
                let spec = PoolSpec {
                    node: node.clone(),
                    devices: devices.clone(),
                    media: media.into(),
                    ..PoolSpec::default()
                };
                if is_volatile(devices) {
                    // There is nobody to tell that nobody can be told.
                    let _ = writeln!(std::io::stderr(), "warning: pool {name} {VOLATILE}");
                }
                let pool = labelled(pool(name, spec), name, label);
                let made = Pool::create(self.channel.clone(), pool).await?;
                self.show_when(made, waiting, wait::online).await
            }
            PoolVerb::Cordon(one) => {
                self.update(pool(&one.name, with(true, false)), "spec.cordoned")
                    .await
            }
            PoolVerb::Uncordon(one) => {
                self.update(pool(&one.name, with(false, false)), "spec.cordoned")
                    .await
            }
            PoolVerb::Drain(AwaitedArguments { name, wait: waiting }) => {
                let paths = vec!["spec.drained".to_owned()];
                let drained = pool(name, with(false, true));
                let drained = Pool::update(self.channel.clone(), drained, paths).await?;
                self.show_when(drained, waiting, wait::pool_empty).await
            }
            PoolVerb::Undrain(one) => {
                self.update(pool(&one.name, with(false, false)), "spec.drained")
                    .await
            }
            PoolVerb::Delete(one) => self.remove::<Pool>(one).await,
        }
    }

    async fn volume(&mut self, verb: &VolumeVerb) -> Result<(), CommandError> {
        match verb {
            VolumeVerb::List(arguments) => self.list::<Volume>(arguments).await,
            VolumeVerb::Get(one) => self.get::<Volume>(&one.name).await,
            VolumeVerb::Replicas(one) => {
                replicas::run(&self.channel, &one.name, self.output, self.into).await
            }
            VolumeVerb::Create {
                volume,
                wait: waiting,
            } => {
                let created = Volume::create(self.channel.clone(), asked(volume)).await?;
                self.show_when(created, waiting, wait::healthy).await
            }
            VolumeVerb::Set {
                name,
                template,
                group,
                label,
                no_label,
                limits,
                qos_of_template,
            } => {
                let mut volume = Volume::get(self.channel.clone(), name.clone()).await?;
                let spec = volume.spec.get_or_insert_default();
                let mut paths = Vec::new();
                if let Some(template) = template {
                    spec.template.clone_from(template);
                    paths.push("spec.template".to_owned());
                }
                if *qos_of_template || !limits.is_empty() {
                    let policy = spec.policy.get_or_insert_default();
                    policy.qos = limits.applied(policy.qos).filter(|_| !qos_of_template);
                    paths.push("spec.policy.qos".to_owned());
                }
                if let Some(group) = group {
                    spec.group.clone_from(group);
                    paths.push("spec.group".to_owned());
                }
                if !label.is_empty() || !no_label.is_empty() {
                    let labels = &mut volume.meta_mut().labels;
                    labels.extend(label.iter().cloned());
                    labels.retain(|key, _| !no_label.contains(key));
                    paths.push("metadata.labels".to_owned());
                }
                if paths.is_empty() {
                    let hint = "nothing is to change: give --template, --group, --label, --no-label, --qos, \
                                --qos-read, --qos-write or --qos-weight";
                    return Err(CommandError::Refused(hint.to_owned()));
                }
                // With the revision that was read: what was read is what is changed, or nothing.
                let updated = Volume::update(self.channel.clone(), volume, paths).await?;
                self.show(updated)
            }
            VolumeVerb::Resize {
                name,
                size,
                wait: waiting,
            } => {
                let volume = Volume {
                    spec: Some(VolumeSpec {
                        size_bytes: size.0,
                        ..VolumeSpec::default()
                    }),
                    ..Volume::default()
                };
                let paths = vec!["spec.size_bytes".to_owned()];
                let grown = Volume::update(self.channel.clone(), named(volume, name), paths).await?;
                self.show_when(grown, waiting, wait::grown).await
            }
            VolumeVerb::Publish {
                name,
                host,
                read_only,
                secrets,
                wait: waiting,
            } => {
                let request = PublishVolumeRequest {
                    name: name.clone(),
                    host: Some(HostAccess {
                        host_nqn: host.clone(),
                        read_only: *read_only,
                        ..HostAccess::default()
                    }),
                    sharing: HostSharing::Unspecified.into(),
                    wait_us: None,
                    secrets: secrets.read()?,
                };
                self.publish(request, waiting.wait.then_some(waiting.timeout))
                    .await
            }
            VolumeVerb::Unpublish {
                name,
                host,
                wait: waiting,
            } => {
                let volume = Volume::get(self.channel.clone(), name.clone()).await?;
                let hosts = volume.spec.map(|spec| spec.hosts).unwrap_or_default();
                let request = UnpublishVolumeRequest {
                    name: name.clone(),
                    host_nqn: host.clone(),
                    wait_us: None,
                };
                match waiting.wait {
                    true => wait::unpublished(&self.channel, request, waiting.timeout).await?,
                    false => {
                        let mut client = VolumesClient::new(self.channel.clone());
                        client.unpublish_volume(request).await?;
                    }
                }
                let is_host = |host: &String| hosts.iter().any(|known| known.host_nqn == *host);
                match host {
                    None => writeln!(self.into, "volume {name} is published to nobody any more")?,
                    Some(host) if is_host(host) => {
                        writeln!(self.into, "volume {name} is not published to {host} any more")?;
                    }
                    // The same command may have been given before, and not waited to the end.
                    Some(host) => writeln!(self.into, "volume {name} was not published to {host}")?,
                }
                Ok(())
            }
            VolumeVerb::Rollback(asked) => {
                let told = asked.run(&self.channel).await?;
                writeln!(self.into, "{told}")?;
                Ok(())
            }
            VolumeVerb::Delete(one) => self.remove::<Volume>(one).await,
        }
    }

    /// Publishes a volume, and waits for its target if seconds are given.
    async fn publish(
        &mut self,
        request: PublishVolumeRequest,
        seconds: Option<u64>,
    ) -> Result<(), CommandError> {
        let answer = match seconds {
            None => VolumesClient::new(self.channel.clone())
                .publish_volume(request)
                .await?
                .into_inner(),
            Some(seconds) => wait::published(&self.channel, request, seconds).await?,
        };
        if matches!(self.output, Output::Json | Output::Yaml) {
            return serialized(&answer, self.output, self.into);
        }
        for path in &answer.paths {
            let (host, port) = path.address.rsplit_once(':').unwrap_or((&path.address, "4420"));
            let nqn = &answer.subsystem_nqn;
            writeln!(self.into, "nvme connect -t tcp -a {host} -s {port} -n {nqn}")?;
        }
        if !answer.ready {
            writeln!(
                self.into,
                "not ready: {}; ask again, or give --wait",
                answer.message
            )?;
        }
        Ok(())
    }

    async fn plan(&mut self, arguments: &VolumeArguments) -> Result<(), CommandError> {
        let request = PlanVolumeRequest {
            volume: Some(asked(arguments)),
        };
        let plan = VolumesClient::new(self.channel.clone())
            .plan_volume(request)
            .await?
            .into_inner();
        if matches!(self.output, Output::Json | Output::Yaml) {
            return serialized(&plan, self.output, self.into);
        }
        writeln!(self.into, "{}", plan.summary)?;
        let mut rows = Vec::new();
        for placed in plan.placed {
            rows.push(vec![
                "+".to_owned(),
                placed.pool,
                placed.node,
                placed.reasons.join("; "),
            ]);
        }
        for rejected in plan.rejected {
            rows.push(vec![
                "-".to_owned(),
                rejected.pool,
                String::new(),
                rejected.reason,
            ]);
        }
        table(&["", "POOL", "NODE", "WHY"], rows, self.into)
    }

    async fn snapshot(&mut self, verb: &SnapshotVerb) -> Result<(), CommandError> {
        match verb {
            SnapshotVerb::List(arguments) => self.list::<Snapshot>(arguments).await,
            SnapshotVerb::Get(one) => self.get::<Snapshot>(&one.name).await,
            SnapshotVerb::Create {
                name,
                volume,
                label,
                wait: waiting,
            } => {
                let snapshot = Snapshot {
                    spec: Some(SnapshotSpec {
                        volume: volume.clone(),
                        group_snapshot: String::new(),
                    }),
                    ..Snapshot::default()
                };
                let snapshot = labelled(snapshot, name, label);
                let made = Snapshot::create(self.channel.clone(), snapshot).await?;
                self.show_when(made, waiting, wait::ready).await
            }
            SnapshotVerb::Delete(one) => self.remove::<Snapshot>(one).await,
        }
    }

    async fn group(&mut self, verb: &GroupVerb) -> Result<(), CommandError> {
        match verb {
            GroupVerb::List(arguments) => self.list::<Group>(arguments).await,
            GroupVerb::Get(one) => self.get::<Group>(&one.name).await,
            GroupVerb::Create { name, schedule } => self.create(scheduled(name, schedule)).await,
            GroupVerb::Set { name, schedule, ends } => {
                if schedule.every.is_none() && !ends {
                    let hint = "nothing is to change: give --every and --keep, or --no-schedule";
                    return Err(CommandError::Refused(hint.to_owned()));
                }
                self.update(scheduled(name, schedule), "spec.schedule").await
            }
            GroupVerb::Snapshot { verb } => self.group_snapshot(verb).await,
            GroupVerb::Delete(one) => self.delete::<Group>(one).await,
        }
    }

    async fn group_snapshot(&mut self, verb: &GroupSnapshotVerb) -> Result<(), CommandError> {
        match verb {
            GroupSnapshotVerb::List(arguments) => self.list::<GroupSnapshot>(arguments).await,
            GroupSnapshotVerb::Get(one) => self.get::<GroupSnapshot>(&one.name).await,
            GroupSnapshotVerb::Create {
                name,
                group,
                volume,
                wait: waiting,
            } => {
                let group_snapshot = GroupSnapshot {
                    spec: Some(GroupSnapshotSpec {
                        group: group.clone().unwrap_or_default(),
                        volumes: volume.clone(),
                    }),
                    ..GroupSnapshot::default()
                };
                let made = GroupSnapshot::create(self.channel.clone(), named(group_snapshot, name)).await?;
                self.show_when(made, waiting, wait::taken).await
            }
            GroupSnapshotVerb::Delete(one) => self.remove::<GroupSnapshot>(one).await,
        }
    }

    async fn template(&mut self, verb: &TemplateVerb) -> Result<(), CommandError> {
        match verb {
            TemplateVerb::List(arguments) => self.list::<Template>(arguments).await,
            TemplateVerb::Get(one) => self.get::<Template>(&one.name).await,
            TemplateVerb::Create { name, policy } => {
                let template = with_policy(VolumePolicy::default(), policy);
                self.create(named(template, name)).await
            }
            TemplateVerb::Set {
                name,
                policy,
                preview,
            } => {
                if policy.is_empty() {
                    let hint = "nothing is to change: give --replicas, --min-in-sync, --iops, --qos, \
                                --qos-read, --qos-write or --qos-weight";
                    return Err(CommandError::Refused(hint.to_owned()));
                }
                let present = Template::get(self.channel.clone(), name.clone()).await?;
                let revision = present.meta().revision;
                let present = present.spec.and_then(|spec| spec.policy).unwrap_or_default();
                let mut template = named(with_policy(present, policy), name);
                // What was read is what is changed, or nothing.
                template.meta_mut().revision = revision;
                match preview {
                    true => self.preview(template).await,
                    false => self.update(template, "spec.policy").await,
                }
            }
            TemplateVerb::Delete(one) => self.delete::<Template>(one).await,
        }
    }

    async fn preview(&mut self, template: Template) -> Result<(), CommandError> {
        let request = UpdateTemplateRequest {
            template: Some(template),
            update_mask: Some(FieldMask {
                paths: vec!["spec.policy".to_owned()],
            }),
        };
        let mut client = TemplatesClient::new(self.channel.clone());
        let preview = client.preview_template(request).await?.into_inner();
        if matches!(self.output, Output::Json | Output::Yaml) {
            return serialized(&preview, self.output, self.into);
        }
        let copied = super::Size(preview.copied_bytes_max);
        let (changes, volumes) = (preview.changes.len(), preview.volumes);
        writeln!(
            self.into,
            "{changes} of {volumes} volumes change, {copied} are copied at most"
        )?;
        let rows = preview.changes.into_iter().map(|change| {
            vec![
                change.volume,
                change.added_pools.join(" "),
                change.removed_pools.join(" "),
                change
                    .qos
                    .map_or_else(String::new, |qos| limits::told(Some(&qos))),
                change.problem,
            ]
        });
        table(
            &["VOLUME", "ADDED", "REMOVED", "LIMITS", "PROBLEM"],
            rows.collect(),
            self.into,
        )
    }
}

/// A group with this schedule, or without.
fn scheduled(name: &str, arguments: &ScheduleArguments) -> Group {
    let schedule = arguments.every.zip(arguments.keep);
    let schedule = schedule.map(|(seconds, kept_max)| SnapshotSchedule {
        interval_us: seconds.saturating_mul(1_000_000),
        kept_max,
    });
    let group = Group {
        spec: Some(GroupSpec { schedule }),
        ..Group::default()
    };
    named(group, name)
}

/// A volume as it is asked for.
fn asked(arguments: &VolumeArguments) -> Volume {
    let policy = VolumePolicy {
        replicas: arguments.replicas,
        qos: arguments.limits.applied(None),
        ..VolumePolicy::default()
    };
    let policy = Some(policy).filter(|policy| *policy != VolumePolicy::default());
    let volume = Volume {
        spec: Some(VolumeSpec {
            size_bytes: arguments.size.0,
            template: arguments.template.clone(),
            policy,
            source_snapshot: arguments.source.clone(),
            group: arguments.group.clone(),
            ..VolumeSpec::default()
        }),
        ..Volume::default()
    };
    labelled(volume, &arguments.name, &arguments.label)
}

/// A template with a policy, in which what is given replaces what was.
fn with_policy(mut policy: VolumePolicy, arguments: &PolicyArguments) -> Template {
    policy.replicas = arguments.replicas.or(policy.replicas);
    policy.min_in_sync = arguments.min_in_sync.or(policy.min_in_sync);
    policy.qos = arguments.limits.applied(policy.qos);
    if let Some(iops) = arguments.iops {
        let rate = QosRate {
            per_second: iops,
            ..QosRate::default()
        };
        let total = Limit::new(Direction::Total, Counted::Operations);
        policy.qos.get_or_insert_default().set_rate(total, Some(rate));
    }
    Template {
        spec: Some(TemplateSpec { policy: Some(policy) }),
        ..Template::default()
    }
}
