//! The regular expressions that PEFT takes as keys of `rank_pattern` and `alpha_pattern`.
//!
//! PEFT asks Python's `re.match(rf"(.*\.)?({key})$", name)`. Here all states of the expression are followed at once, so that no expression
//! takes more than its own length times the name's; what Python knows beyond literals, classes, groups, alternatives, repetitions
//! and the two anchors is refused.

/// The longest program: a bound on what repetitions such as `{1000}` may cost.
const MAX_STEPS: usize = 4096;

/// The longest key that is more than a name.
const MAX_KEY: usize = 512;

/// The deepest groups.
const MAX_DEPTH: usize = 32;

/// A key, ready to be compared with names.
#[derive(Debug)]
pub(super) enum Pattern {
    /// A name; its dots stand for any character.
    Name(String),
    Program(Program),
}

#[derive(Debug, Default)]
pub(super) struct Program {
    steps: Vec<Step>,
    classes: Vec<Class>,
}

/// Builds a program; repetitions of nothing take no steps, but time.
#[derive(Default)]
struct Compiler {
    program: Program,
    turns: usize,
}

/// Numbers of steps and classes are below [`MAX_STEPS`].
#[derive(Debug, Clone, Copy)]
enum Step {
    Char(char),
    Class(u16),
    /// Goes on at both.
    Either(u16, u16),
    Go(u16),
    Begin,
    End,
    Found,
}

/// Which characters.
#[derive(Debug, Clone, PartialEq)]
enum Class {
    One(char),
    /// Ranges, and whether it is the others.
    Set(Vec<(char, char)>, bool),
    /// Python's dot: all but the end of a line.
    Dot,
}

impl Class {
    fn has(&self, c: char) -> bool {
        match self {
            Class::One(one) => c == *one,
            Class::Dot => c != '\n',
            Class::Set(ranges, others) => ranges.iter().any(|&(from, to)| (from..=to).contains(&c)) != *others,
        }
    }
}

#[derive(Debug, Clone)]
enum Node {
    One(Class),
    Begin,
    End,
    All(Vec<Node>),
    Any(Vec<Node>),
    Repeat(Box<Node>, usize, Option<usize>),
}

impl Pattern {
    /// Reads a key.
    pub fn parse(key: &str) -> Result<Self, String> {
        if key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'.') {
            return Ok(Pattern::Name(key.into()));
        }
        if key.len() > MAX_KEY {
            return Err(format!("it has more than {MAX_KEY} bytes"));
        }
        let mut parser = Parser { rest: key.chars().collect(), at: 0 };
        let key = parser.alternatives(0)?;
        if parser.at < parser.rest.len() {
            return Err("a bracket closes that nothing opened".into());
        }
        let dot = Node::One(Class::One('.'));
        let parents = Node::All(vec![Node::Repeat(Box::new(Node::One(Class::Dot)), 0, None), dot]);
        let whole = Node::All(vec![Node::Repeat(Box::new(parents), 0, Some(1)), key, Node::End]);
        let mut compiler = Compiler::default();
        compiler.compile(&whole)?;
        compiler.push(Step::Found)?;
        Ok(Pattern::Program(compiler.program))
    }

    /// What it takes of memory, in steps.
    pub fn steps(&self) -> usize {
        match self {
            Pattern::Name(_) => 0,
            Pattern::Program(program) => program.steps.len(),
        }
    }

    /// Whether a module's name, or its end behind a dot, is the key.
    pub fn matches(&self, name: &str) -> bool {
        let key = match self {
            Pattern::Program(program) => return program.matches(name),
            Pattern::Name(key) => key,
        };
        let mut rest = name.chars();
        let same =
            key.bytes().rev().all(|k| rest.next_back().is_some_and(|c| c != '\n' && (k == b'.' || c == char::from(k))));
        let parents = rest.as_str();
        same && (parents.is_empty() || parents.ends_with('.') && !parents.contains('\n'))
    }
}

impl Program {
    fn matches(&self, name: &str) -> bool {
        let mut now = vec![false; self.steps.len()];
        let mut list = Vec::new();
        self.follow(0, true, name.is_empty(), &mut now, &mut list);
        let mut chars = name.chars().peekable();
        while let Some(c) = chars.next() {
            let ended = chars.peek().is_none();
            let before = std::mem::take(&mut list);
            now.fill(false);
            for at in before {
                let taken = match self.steps[at] {
                    Step::Char(one) => one == c,
                    Step::Class(number) => self.classes[number as usize].has(c),
                    _ => false,
                };
                if taken {
                    self.follow(at + 1, false, ended, &mut now, &mut list);
                }
            }
            if list.is_empty() {
                return false;
            }
        }
        list.iter().any(|&at| matches!(self.steps[at], Step::Found))
    }

    /// Adds the steps that are reached without another character.
    fn follow(&self, from: usize, begun: bool, ended: bool, now: &mut [bool], list: &mut Vec<usize>) {
        let mut open = vec![from];
        while let Some(at) = open.pop() {
            if std::mem::replace(&mut now[at], true) {
                continue;
            }
            match self.steps[at] {
                Step::Go(to) => open.push(to as usize),
                Step::Either(a, b) => open.extend([a as usize, b as usize]),
                Step::Begin if begun => open.push(at + 1),
                Step::End if ended => open.push(at + 1),
                Step::Begin | Step::End => {}
                Step::Char(_) | Step::Class(_) | Step::Found => list.push(at),
            }
        }
    }
}

impl Compiler {
    fn push(&mut self, step: Step) -> Result<usize, String> {
        if self.program.steps.len() == MAX_STEPS {
            return Err(format!("it has more than {MAX_STEPS} steps"));
        }
        self.program.steps.push(step);
        Ok(self.program.steps.len() - 1)
    }

    /// The number of the step that comes next.
    fn next(&self) -> u16 {
        self.program.steps.len() as u16
    }

    fn class(&mut self, class: &Class) -> Result<usize, String> {
        if let Class::One(c) = class {
            return self.push(Step::Char(*c));
        }
        let known = self.program.classes.iter().position(|other| other == class);
        let number = known.unwrap_or(self.program.classes.len());
        if known.is_none() {
            self.program.classes.push(class.clone());
        }
        self.push(Step::Class(number as u16))
    }

    fn compile(&mut self, node: &Node) -> Result<(), String> {
        self.turns += 1;
        if self.turns > 16 * MAX_STEPS {
            return Err(format!("it has more than {MAX_STEPS} steps"));
        }
        match node {
            Node::One(class) => drop(self.class(class)?),
            Node::Begin => drop(self.push(Step::Begin)?),
            Node::End => drop(self.push(Step::End)?),
            Node::All(nodes) => nodes.iter().try_for_each(|node| self.compile(node))?,
            Node::Any(nodes) => {
                let Some((last, first)) = nodes.split_last() else { return Ok(()) };
                let mut ends = Vec::new();
                for node in first {
                    let fork = self.push(Step::Go(0))?;
                    self.compile(node)?;
                    ends.push(self.push(Step::Go(0))?);
                    self.program.steps[fork] = Step::Either(fork as u16 + 1, self.next());
                }
                self.compile(last)?;
                for end in ends {
                    self.program.steps[end] = Step::Go(self.next());
                }
            }
            Node::Repeat(node, least, most) => {
                for _ in 0..*least {
                    self.compile(node)?;
                }
                match most {
                    None => {
                        let fork = self.push(Step::Go(0))?;
                        self.compile(node)?;
                        self.push(Step::Go(fork as u16))?;
                        self.program.steps[fork] = Step::Either(fork as u16 + 1, self.next());
                    }
                    Some(most) => {
                        let mut forks = Vec::new();
                        for _ in *least..*most {
                            forks.push(self.push(Step::Go(0))?);
                            self.compile(node)?;
                        }
                        for fork in forks {
                            self.program.steps[fork] = Step::Either(fork as u16 + 1, self.next());
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

struct Parser {
    rest: Vec<char>,
    at: usize,
}

impl Parser {
    fn peek(&self) -> Option<char> {
        self.rest.get(self.at).copied()
    }

    fn take(&mut self, c: char) -> bool {
        let there = self.peek() == Some(c);
        self.at += usize::from(there);
        there
    }

    fn alternatives(&mut self, depth: usize) -> Result<Node, String> {
        if depth > MAX_DEPTH {
            return Err(format!("its groups are more than {MAX_DEPTH} deep"));
        }
        let mut nodes = vec![self.sequence(depth)?];
        while self.take('|') {
            nodes.push(self.sequence(depth)?);
        }
        Ok(Node::Any(nodes))
    }

    fn sequence(&mut self, depth: usize) -> Result<Node, String> {
        let mut nodes = Vec::new();
        while let Some(c) = self.peek() {
            if c == '|' || c == ')' {
                break;
            }
            let node = self.atom(depth)?;
            nodes.push(self.repeated(node)?);
        }
        Ok(Node::All(nodes))
    }

    fn atom(&mut self, depth: usize) -> Result<Node, String> {
        let c = self.peek().unwrap_or_default();
        self.at += 1;
        Ok(match c {
            '^' => Node::Begin,
            '$' => Node::End,
            '.' => Node::One(Class::Dot),
            '[' => Node::One(self.class()?),
            '\\' => Node::One(self.escape()?),
            '(' => {
                if self.take('?') && !self.take(':') {
                    return Err("a group with (? other than (?:".into());
                }
                let inner = self.alternatives(depth + 1)?;
                if !self.take(')') {
                    return Err("a group that does not end".into());
                }
                inner
            }
            '*' | '+' | '?' => return Err(format!("a {c} that repeats nothing")),
            c => Node::One(Class::One(c)),
        })
    }

    fn repeated(&mut self, node: Node) -> Result<Node, String> {
        let Some((least, most)) = self.count()? else { return Ok(node) };
        // Fewest first or most first: what is found is the same.
        let _ = self.take('?');
        if self.count()?.is_some() {
            return Err("a repetition of a repetition".into());
        }
        Ok(Node::Repeat(Box::new(node), least, most))
    }

    /// `*`, `+`, `?`, `{2}`, `{2,}`, `{,3}`, `{2,3}`.
    fn count(&mut self) -> Result<Option<(usize, Option<usize>)>, String> {
        let known = match self.peek() {
            Some('*') => (0, None),
            Some('+') => (1, None),
            Some('?') => (0, Some(1)),
            Some('{') => return self.braces(),
            _ => return Ok(None),
        };
        self.at += 1;
        Ok(Some(known))
    }

    fn braces(&mut self) -> Result<Option<(usize, Option<usize>)>, String> {
        let text: String = self.rest[self.at + 1..].iter().take_while(|c| **c != '}').collect();
        let closed = self.rest.get(self.at + 1 + text.chars().count()) == Some(&'}');
        let number = |text: &str, none: Option<usize>| match text {
            "" => none,
            _ => text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok().unwrap_or(usize::MAX)),
        };
        let counts = match text.split_once(',') {
            _ if !closed || text.is_empty() => None,
            None => number(&text, None).map(|n| (n, Some(n))),
            Some((least, "")) => number(least, Some(0)).map(|n| (n, None)),
            Some((least, most)) => number(least, Some(0)).zip(number(most, None)).map(|(l, m)| (l, Some(m))),
        };
        // Other braces are characters like others.
        let Some((least, most)) = counts else { return Ok(None) };
        if least > MAX_STEPS || most.is_some_and(|most| most > MAX_STEPS || most < least) {
            return Err(format!("{{{text}}} repetitions"));
        }
        self.at += 2 + text.chars().count();
        Ok(Some((least, most)))
    }

    fn class(&mut self) -> Result<Class, String> {
        let others = self.take('^');
        let mut ranges = Vec::new();
        loop {
            let first = ranges.is_empty();
            match self.peek() {
                None => return Err("a class that does not end".into()),
                Some(']') if !first => break,
                Some('\\') => {
                    self.at += 1;
                    match self.escape()? {
                        Class::One(c) => ranges.push((c, c)),
                        Class::Set(more, false) => ranges.extend(more),
                        _ => return Err("the opposite of a class within a class".into()),
                    }
                }
                Some(from) => {
                    self.at += 1;
                    let to = match (self.peek(), self.rest.get(self.at + 1)) {
                        (Some('-'), Some(&to)) if to != ']' && to != '\\' => {
                            self.at += 2;
                            to
                        }
                        _ => from,
                    };
                    if to < from {
                        return Err(format!("the range {from}-{to}"));
                    }
                    ranges.push((from, to));
                }
            }
        }
        self.at += 1;
        Ok(Class::Set(ranges, others))
    }

    fn escape(&mut self) -> Result<Class, String> {
        let Some(c) = self.peek() else { return Err("a backslash at its end".into()) };
        self.at += 1;
        let set = |ranges: &[(char, char)], others| Class::Set(ranges.to_vec(), others);
        let (digits, words, spaces) =
            ([('0', '9')], [('0', '9'), ('A', 'Z'), ('a', 'z'), ('_', '_')], [(' ', ' '), ('\t', '\r')]);
        Ok(match c {
            'd' | 'D' => set(&digits, c == 'D'),
            'w' | 'W' => set(&words, c == 'W'),
            's' | 'S' => set(&spaces, c == 'S'),
            c if c.is_ascii_alphanumeric() => return Err(format!("\\{c}")),
            c => Class::One(c),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Python's `re.match(rf"(.*\.)?({key})$", name)` answers.
    #[test]
    fn keys_as_python_matches_them() {
        for (key, name, found) in [
            ("q_proj", "model.layers.0.q_proj", true),
            ("q_proj", "q_proj", true),
            ("q_proj", "model.my_q_proj", false),
            ("q_proj", "model.q_proj.x", false),
            ("layers.0.q", "model.layers.0.q", true),
            ("layers.0.q", "model.layers.x0.q", false),
            ("layers.0.q", "layersx0.q", true),
            ("^model.layers.0.q", "model.layers.0.q", true),
            ("^layers.0.q", "model.layers.0.q", false),
            (r"layers\.(0|1[0-9])\.q_proj", "m.layers.12.q_proj", true),
            (r"layers\.(0|1[0-9])\.q_proj", "m.layers.2.q_proj", false),
            (r".*\.[qk]_proj", "a.b.k_proj", true),
            (r".*\.[^qk]_proj", "a.b.k_proj", false),
            (r"layers\.\d+\.(?:q|v)_proj", "layers.07.v_proj", true),
            (r"layers\.\d{2,3}\.q", "layers.7.q", false),
            (r"layers\.\d{2,3}\.q", "layers.777.q", true),
            (r"layers\.\d{,1}\.q", "layers.77.q", false),
            ("a{x}", "a{x}", true),
            ("q|k", "m.k", true),
            ("q|k", "m.kk", false),
            ("(q|k)$", "m.q", true),
            ("q$k", "m.q", false),
            (r"\w+?_proj", "up_proj", true),
            ("", "m.", true),
            ("", "m", false),
            ("(a*)*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaac", false),
            ("[]x]+", "m.]x", true),
            (r"[\d.]+", "1.2", true),
            ("é", "m.é", true),
        ] {
            let pattern = Pattern::parse(key).unwrap_or_else(|e| panic!("{key}: {e}"));
            assert_eq!(pattern.matches(name), found, "{key} {name}");
        }
    }

    #[test]
    fn what_is_not_understood() {
        for (key, said) in [
            ("(?=a)", "a group with (? other than (?:"),
            ("(a", "a group that does not end"),
            ("a)", "a bracket closes that nothing opened"),
            ("*a", "a * that repeats nothing"),
            ("a**", "a repetition of a repetition"),
            ("a{3,2}", "{3,2} repetitions"),
            ("(a{99}){99}", "it has more than 4096 steps"),
            ("(((){999}){999}){999}", "it has more than 4096 steps"),
            ("[a", "a class that does not end"),
            ("[z-a]", "the range z-a"),
            (r"[\D]", "the opposite of a class within a class"),
            (r"a\b", r"\b"),
            (r"a\1", r"\1"),
            ("a\\", "a backslash at its end"),
            (&"é".repeat(300), "it has more than 512 bytes"),
            (&"(".repeat(99), "its groups are more than 32 deep"),
        ] {
            assert_eq!(Pattern::parse(key).err().as_deref(), Some(said), "{key}");
        }
    }
}
