//! What goes along with a conversion: where in the message it is, what it noticed, and what the process knows that
//! messages refer to (files, runtime values). Knows no particular message.

use super::answers::{Answer, table};
use super::model::{Bootstrap, ClusterDiscovery, ConfigSourceKind};
use super::pb::google;
use super::{ConfigError, Notices, ProblemKind};
use crate::runtime::Runtime;
use std::cell::RefCell;
use std::collections::{BTreeSet, HashSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use xds_protos::nearest;

/// The result of every conversion. An error ends the conversion of the message at hand; problems with a single value are
/// recorded in the context instead, and conversion goes on with a harmless value, so that a person hears of all at once.
pub(super) type Result<T> = std::result::Result<T, ConfigError>;

/// Protobuf's own bound of a duration: 10,000 years.
const MAX_DURATION_SECONDS: i64 = 315_576_000_000;

/// Problems that are kept of one conversion: a push may have as many as it has bytes.
const MAX_PROBLEMS: usize = 10_000;

/// Problems up to which the names are looked for that were probably meant.
const MAX_SUGGESTED: usize = 20;
/// What a secret is for; those of different kinds may share a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum SecretSort {
    Certificate,
    Validation,
    Other,
}

/// State of one conversion. Make one per resource, or take `notices` out between two.
#[derive(Debug, Default)]
pub struct Context {
    /// Fields that are set and have no effect, gathered so far.
    pub notices: Notices,
    /// Relative file names start here; empty: in the working directory, as in Envoy.
    pub base_dir: PathBuf,
    /// Runtime values. [`bootstrap`](super::bootstrap) loads them from its `layered_runtime`.
    pub runtime: Arc<Runtime>,
    /// `--service-cluster`, which goes before the node's cluster.
    pub service_cluster: Option<String>,
    /// What sources of configuration may refer to; `None` when that is not known, or checked by others.
    pub servers: Option<Servers>,
    /// [`bootstrap`](super::bootstrap) finds out `servers`, and refuses sources that name others.
    pub check_sources: bool,
    /// The secrets of the bootstrap by kind and name, where they are known.
    pub(super) static_secrets: Option<HashSet<(SecretSort, String)>>,
    /// A field without effect refuses the resource instead of being noticed.
    pub reject_unsupported: bool,
    /// Names of HTTP filters that the route configuration at hand enables.
    pub(super) enabled_filters: BTreeSet<Box<str>>,
    /// Fields that the API does not have refuse the resource; this says by which flag.
    pub(super) refuse_unknown: Option<&'static str>,
    path: String,
    problems: RefCell<Vec<ConfigError>>,
    /// Elements of lists that were left out, by path: those behind them have moved up.
    left_out: Vec<String>,
}

/// What there is to ask for configuration.
#[derive(Debug, Clone, Default)]
pub struct Servers {
    /// Names of static clusters whose endpoints do not themselves come from a server.
    pub clusters: HashSet<Arc<str>>,
    /// The bootstrap has `ads_config`.
    pub ads: bool,
}

impl Servers {
    /// Those that a bootstrap has.
    pub fn of(bootstrap: &Bootstrap) -> Servers {
        let stands_alone = |discovery: &ClusterDiscovery| match discovery {
            ClusterDiscovery::Eds { source, .. } => matches!(source.kind, ConfigSourceKind::Path(_)),
            _ => true,
        };
        let clusters = bootstrap.clusters.iter().filter(|cluster| stands_alone(&cluster.discovery));
        Servers { clusters: clusters.map(|cluster| cluster.name.clone()).collect(), ads: bootstrap.ads.is_some() }
    }
}

impl Context {
    /// A context that knows the runtime values of the bootstrap.
    pub fn with_runtime(runtime: Arc<Runtime>) -> Context {
        Context { runtime, ..Context::default() }
    }

    /// The same, with fields that the API does not have refused where a flag says so.
    #[must_use]
    pub fn refusing_unknown(self, flag: Option<&'static str>) -> Context {
        Context { refuse_unknown: flag, ..self }
    }

    /// Runs `convert` on the message in `field`; errors and notices made there carry its path.
    pub(super) fn at<T>(&mut self, field: &str, convert: impl FnOnce(&mut Context) -> T) -> T {
        let outer = self.path.len();
        if outer > 0 && !field.starts_with('[') {
            self.path.push('.');
        }
        self.path.push_str(field);
        let done = convert(self);
        self.path.truncate(outer);
        done
    }

    /// Converts each message of the repeated `field`, in order. One that cannot be converted is recorded and left out;
    /// where none can be, that is an error, for a list that was not empty must not seem so.
    pub(super) fn each<T, U>(
        &mut self,
        field: &str,
        items: impl IntoIterator<Item = T>,
        mut convert: impl FnMut(T, &mut Context) -> Result<U>,
    ) -> Result<Vec<U>> {
        self.at(field, |cx| {
            let outer = cx.path.len();
            let (mut done, mut failed) = (Vec::new(), None);
            for (i, item) in items.into_iter().enumerate() {
                // Writing to a String cannot fail.
                let _ = write!(cx.path, "[{i}]");
                cx.record_all(failed.take());
                let converted = convert(item, cx);
                cx.path.truncate(outer);
                match converted {
                    Ok(item) => done.push(item),
                    Err(error) => {
                        let _ = write!(cx.path, "[{i}]");
                        cx.leave_out();
                        cx.path.truncate(outer);
                        failed = Some(error);
                    }
                }
            }
            match failed {
                Some(error) if done.is_empty() => Err(error),
                last => {
                    cx.record_all(last);
                    Ok(done)
                }
            }
        })
    }

    /// Notes that the element of a list that is being converted has no place in the model.
    pub(super) fn leave_out(&mut self) {
        if self.left_out.len() < MAX_PROBLEMS {
            self.left_out.push(self.path.clone());
        }
    }

    /// The elements that were left out so far.
    pub(super) fn take_left_out(&mut self) -> Vec<String> {
        std::mem::take(&mut self.left_out)
    }

    /// The outcome of one part of a message. What ended it is recorded, and conversion of the rest goes on with the
    /// default, which nobody gets to see: [`finish`](Self::finish) refuses the resource.
    pub(super) fn part<T: Default>(&self, outcome: Result<T>) -> T {
        self.part_or(outcome, T::default)
    }

    /// As [`part`](Self::part), where the type has no default.
    pub(super) fn part_or<T>(&self, outcome: Result<T>, harmless: impl FnOnce() -> T) -> T {
        outcome.unwrap_or_else(|error| {
            self.record_all([error]);
            harmless()
        })
    }

    /// Keeps problems until [`finish`](Self::finish); conversion goes on.
    pub(super) fn record_all(&self, errors: impl IntoIterator<Item = ConfigError>) {
        let mut problems = self.problems.borrow_mut();
        for problem in errors.into_iter().flat_map(ConfigError::into_problems) {
            if problems.len() < MAX_PROBLEMS {
                problems.push(problem);
            }
        }
    }

    /// What came of a conversion, and whether it has no problem at all; they are recorded.
    pub(super) fn as_far<T>(&mut self, convert: impl FnOnce(&mut Context) -> Result<T>) -> (Option<T>, bool) {
        let before = self.problems.get_mut().len();
        match convert(self) {
            Ok(value) => (Some(value), self.problems.get_mut().len() == before && before < MAX_PROBLEMS),
            Err(error) => {
                self.record_all([error]);
                (None, false)
            }
        }
    }

    /// An error about the message that is being converted.
    pub(super) fn error(&self, message: impl Into<String>) -> ConfigError {
        ConfigError::new(self.path.clone(), message)
    }

    /// An error about one of its fields.
    pub(super) fn error_at(&self, field: &str, message: impl Into<String>) -> ConfigError {
        ConfigError::new(self.join(field), message)
    }

    /// Says that `field` has no effect. `meaning`: what a person loses by that.
    pub(super) fn warn(&mut self, field: &str, meaning: impl Into<String>) {
        self.warn_of_all(field, meaning, 1);
    }

    /// [`warn`](Self::warn), of as many fields as there are on this way.
    pub(super) fn warn_of_all(&mut self, field: &str, meaning: impl Into<String>, count: usize) {
        let (path, meaning) = (self.join(field), meaning.into());
        if self.reject_unsupported {
            let message = format!("is set and has no effect here: {meaning}");
            self.record_all([ConfigError::new(path.clone(), message).of_kind(ProblemKind::Unsupported)]);
        }
        self.notices.warn(path, meaning, count);
    }

    /// [`warn`](Self::warn) if the field is set, that is, differs from its default.
    pub(super) fn no_effect<T: Default + PartialEq>(&mut self, field: &str, value: &T, meaning: &str) {
        if *value != T::default() {
            self.warn(field, meaning);
        }
    }

    /// Refuses the resource if the field is set: acting otherwise than it says would be worse than not acting.
    pub(super) fn refuse<T: Default + PartialEq>(&self, field: &str, value: &T, why: &str) -> Result<()> {
        if *value != T::default() {
            let problem = self.error_at(field, format!("is not supported: {why}"));
            self.record_all([problem.of_kind(ProblemKind::Unsupported)]);
        }
        Ok(())
    }

    /// What the table of answers says of an extension: `true`, convert it; `false`, leave it out (a notice says so).
    /// `name` is what the configuration calls it.
    pub(super) fn extension(&mut self, name: &str, type_name: &str) -> Result<bool> {
        match table().find(type_name).map(|known| known.whole) {
            Some(Answer::Act { .. } | Answer::Idle { .. }) => Ok(true),
            Some(Answer::Warn { meaning, .. }) => {
                self.warn("", format!("{name} ({type_name}) does not exist here: {meaning}"));
                Ok(false)
            }
            Some(Answer::Reject { reason, .. }) => {
                let problem = self.error(format!("{name} ({type_name}) is not supported: {reason}"));
                Err(problem.of_kind(ProblemKind::Unsupported))
            }
            None => {
                let near = self.meant(|| nearest(type_name, table().messages().iter().map(|m| m.message.name())));
                let what = format!("Didn't find a registered implementation for '{name}' with type URL: '{type_name}'");
                Err(self.error(what + &near))
            }
        }
    }

    /// ` (did you mean "x"?)`, as long as few problems are recorded: nobody reads the rest, and looking has its cost.
    pub(super) fn meant<'n>(&self, look: impl FnOnce() -> Option<&'n str>) -> String {
        let near = if self.problems.borrow().len() < MAX_SUGGESTED { look() } else { None };
        near.map(|near| format!(" (did you mean {near:?}?)")).unwrap_or_default()
    }

    /// A field that must be there.
    pub(super) fn required<T>(&self, field: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.error_at(field, "is missing, expected a value"))
    }

    /// A string that must not be empty. This and the checks below record what is wrong and go on.
    pub(super) fn non_empty(&self, field: &str, value: String) -> Result<String> {
        if value.is_empty() {
            self.record_all([self.error_at(field, "found an empty string, expected a name")]);
        }
        Ok(value)
    }

    /// A number of an enum as its value.
    pub(super) fn enumeration<E: TryFrom<i32> + Default>(&self, field: &str, value: i32) -> Result<E> {
        Ok(E::try_from(value).unwrap_or_else(|_| {
            self.record_all([self.error_at(field, format!("found {value}, expected a number that the enum defines"))]);
            E::default()
        }))
    }

    /// A duration, which must not be negative.
    pub(super) fn duration(&self, field: &str, value: Option<google::Duration>) -> Result<Option<Duration>> {
        let Some(google::Duration { seconds, nanos }) = value else { return Ok(None) };
        let seconds_ok = (0..=MAX_DURATION_SECONDS).contains(&seconds);
        match (u64::try_from(seconds), u32::try_from(nanos)) {
            (Ok(seconds), Ok(nanos)) if seconds_ok && nanos < 1_000_000_000 => Ok(Some(Duration::new(seconds, nanos))),
            _ => {
                let message = format!("found {seconds} s and {nanos} ns, expected 0 to 10,000 years");
                self.record_all([self.error_at(field, message)]);
                Ok(None)
            }
        }
    }

    /// A duration of which zero means "never": absent gives `default`, zero `None`.
    pub(super) fn timeout(
        &self,
        field: &str,
        value: Option<google::Duration>,
        default: Option<Duration>,
    ) -> Result<Option<Duration>> {
        match self.duration(field, value)? {
            None => Ok(default),
            Some(Duration::ZERO) => Ok(None),
            Some(set) => Ok(Some(set)),
        }
    }

    /// A duration that must be more than zero when set.
    pub(super) fn positive(&self, field: &str, value: Option<google::Duration>) -> Result<Option<Duration>> {
        match self.duration(field, value)? {
            Some(Duration::ZERO) => {
                self.record_all([self.error_at(field, "found 0s, expected more than 0s")]);
                Ok(None)
            }
            other => Ok(other),
        }
    }

    /// A port number.
    pub(super) fn port(&self, field: &str, value: u32) -> Result<u16> {
        Ok(u16::try_from(value).unwrap_or_else(|_| {
            self.record_all([self.error_at(field, format!("found {value}, expected a port, 0 to 65535"))]);
            u16::MAX
        }))
    }

    /// Whether a runtime feature of Envoy's is on.
    pub(super) fn runtime_flag(&self, key: &str, default: bool) -> bool {
        self.runtime.flag(key).unwrap_or(default)
    }

    /// A number that runtime may override, as it is now.
    pub(super) fn runtime_number(&self, key: &str, default: f64) -> f64 {
        self.runtime.number(key).unwrap_or(default)
    }

    /// Where a file name of the configuration points.
    pub(super) fn resolve(&self, file: &str) -> PathBuf {
        if self.base_dir.as_os_str().is_empty() { PathBuf::from(file) } else { self.base_dir.join(Path::new(file)) }
    }

    /// Ends the conversion of one resource: the problems that were recorded and the one that ended it come out here.
    pub(super) fn finish<T>(&mut self, converted: Result<T>) -> Result<T> {
        let problems = std::mem::take(self.problems.get_mut());
        let (value, last) = match converted {
            Ok(value) => (Some(value), None),
            Err(error) => (None, Some(error)),
        };
        let problems = said_once(problems.into_iter().chain(last.into_iter().flat_map(ConfigError::into_problems)));
        match (value, ConfigError::all(problems)) {
            (Some(value), None) => Ok(value),
            (_, Some(problems)) => Err(problems),
            // an error cannot be lost: what is left out is said by another
            (None, None) => Err(self.error("cannot be converted")),
        }
    }

    fn join(&self, field: &str) -> String {
        match (self.path.is_empty(), field.is_empty()) {
            (true, _) => field.to_owned(),
            (false, true) => self.path.clone(),
            (false, false) if field.starts_with('[') => format!("{}{field}", self.path),
            (false, false) => format!("{}.{field}", self.path),
        }
    }
}

/// Leaves out what conversion says of fields that the API's rules or the table of answers refuse already.
fn said_once(problems: impl Iterator<Item = ConfigError>) -> Vec<ConfigError> {
    let problems: Vec<ConfigError> = problems.collect();
    let of_kind = |kind| problems.iter().filter(move |p| p.kind == kind).map(|p| p.path.as_str());
    let ruled: HashSet<&str> = of_kind(ProblemKind::Rule).collect();
    let refused: HashSet<&str> = of_kind(ProblemKind::Unsupported).collect();
    fn parent(path: &str) -> &str {
        path.rsplit_once('.').map_or("", |(holder, _)| holder)
    }
    let known = |problem: &ConfigError| {
        let path = problem.path.as_str();
        let mut above = path.match_indices(['.', '[']).map(|(at, _)| &path[..at]);
        problem.kind == ProblemKind::Invalid
            && (ruled.contains(path)
                || refused.contains(path)
                || above.any(|holder| refused.contains(holder))
                // what a oneof holds is refused by its own name, and by conversion by the oneof's
                || problem.message == "is not supported" && refused.iter().any(|other| parent(other) == parent(path))
                // a oneof without a member is its message's problem to the rules, and a field's to conversion
                || problem.message.starts_with("is missing")
                    && ruled.contains(parent(path)))
    };
    let keep: Vec<bool> = problems.iter().map(|problem| !known(problem)).collect();
    problems.into_iter().zip(keep).filter_map(|(problem, keep)| keep.then_some(problem)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_and_notices_carry_the_whole_path() {
        let mut cx = Context::default();
        let outcome: Result<Vec<()>> = cx.at("filter_chains", |cx| {
            cx.each("[0]", [()], |(), cx| {
                cx.no_effect("metadata", &1u32, "nobody reads it");
                cx.no_effect("quiet", &0u32, "nobody reads it");
                Err(cx.error_at("name", "boom"))
            })
        });
        assert_eq!(outcome.unwrap_err().to_string(), "filter_chains[0][0].name: boom");
        let said: Vec<String> = cx.notices.warnings.iter().map(ToString::to_string).collect();
        assert_eq!(said, ["filter_chains[0][0].metadata: nobody reads it"]);
        assert_eq!(cx.error("here").path, "");
    }

    #[test]
    fn durations_are_bounded() {
        let mut cx = Context::default();
        let d = |seconds, nanos| Some(google::Duration { seconds, nanos });
        assert_eq!(cx.duration("t", d(1, 500_000_000)).unwrap(), Some(Duration::from_millis(1500)));
        assert_eq!(cx.duration("t", d(-1, 0)).unwrap(), None);
        assert_eq!(cx.finish(Ok(())).unwrap_err().to_string(), "t: found -1 s and 0 ns, expected 0 to 10,000 years");
        assert_eq!(cx.duration("t", d(0, 2_000_000_000)).unwrap(), None);
        assert!(cx.finish(Ok(())).is_err());
        assert_eq!(cx.timeout("t", d(0, 0), Some(Duration::from_secs(15))).unwrap(), None);
        assert_eq!(cx.timeout("t", None, Some(Duration::from_secs(15))).unwrap(), Some(Duration::from_secs(15)));
        assert_eq!(cx.positive("t", d(0, 0)).unwrap(), None);
        assert_eq!(cx.finish(Ok(())).unwrap_err().to_string(), "t: found 0s, expected more than 0s");
    }

    #[test]
    fn a_person_hears_of_every_problem() {
        let mut cx = Context::default();
        let items = [Some(1), None, Some(0), None];
        let converted = cx.each("items", items, |item, cx| {
            let item = cx.required("value", item)?;
            cx.refuse("zero", &(item == 0), "it is nothing")?;
            cx.port("port", 70_000)
        });
        assert_eq!(converted.as_deref(), Ok(&[u16::MAX, u16::MAX][..]));
        assert_eq!(
            cx.finish(converted).unwrap_err().into_problems().map(|p| p.path).collect::<Vec<_>>(),
            ["items[0].port", "items[1].value", "items[2].zero", "items[2].port", "items[3].value"]
        );
        assert!(cx.finish(Ok(())).is_ok());
    }

    #[test]
    fn strictness_turns_a_notice_into_an_error() {
        let mut cx = Context { reject_unsupported: true, ..Context::default() };
        cx.no_effect("tracing", &true, "no spans");
        assert_eq!(cx.finish(Ok(())).unwrap_err().to_string(), "tracing: is set and has no effect here: no spans");
        assert!(cx.finish(Ok(())).is_ok());
    }
}
