//! Files that somebody else may write: logs, configuration, environment.
