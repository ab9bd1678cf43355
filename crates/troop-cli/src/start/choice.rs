//! Which of the words of a command line a primary in the background is for.

/// An app of a command line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Choice {
    /// The number of the word that names its program or its file.
    pub(crate) word: usize,
    /// The app of the file; empty for a program without a file.
    pub(crate) app: String,
}

impl Choice {
    /// Returns the value of the variable that passes it on. No name of an app has a colon.
    pub(crate) fn encode(&self) -> String {
        match self.word {
            0 => self.app.clone(),
            word => format!(":{word}:{}", self.app),
        }
    }

    pub(crate) fn decode(text: &str) -> Choice {
        let parts = text.strip_prefix(':').and_then(|rest| rest.split_once(':'));
        match parts.and_then(|(word, app)| Some((word.parse().ok()?, app))) {
            Some((word, app)) => Choice { word, app: app.to_owned() },
            None => Choice { word: 0, app: text.to_owned() },
        }
    }
}

/// Returns the names that are wanted, in the order of the file, or the wanted name that there is
/// not.
pub(crate) fn only(names: Vec<String>, wanted: &[String]) -> Result<Vec<String>, String> {
    if wanted.is_empty() {
        return Ok(names);
    }
    match wanted.iter().find(|name| !names.contains(name)) {
        Some(name) => Err(name.clone()),
        None => Ok(names.into_iter().filter(|name| wanted.contains(name)).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_is_passed_on() {
        for (word, app, text) in
            [(0, "", ""), (0, "web", "web"), (2, "", ":2:"), (1, "web", ":1:web")]
        {
            let choice = Choice { word, app: app.into() };
            assert_eq!(choice.encode(), text);
            assert_eq!(Choice::decode(text), choice);
        }
    }

    #[test]
    fn only_names_of_the_file_can_be_wanted() {
        let names = || ["a", "b", "c"].map(String::from).to_vec();
        let wanted =
            |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(only(names(), &[]), Ok(names()));
        assert_eq!(only(names(), &wanted(&["c", "a"])), Ok(wanted(&["a", "c"])));
        assert_eq!(only(names(), &wanted(&["a", "x"])), Err("x".into()));
    }
}
