//! What the exports of a module do: the work behind [`export!`](crate::export!).
//!
//! Public for that macro alone. It turns pointers into messages, keeps the function between events, and
//! keeps the reply to a call until the node has copied it. The two forms of a function meet here in one
//! table of handlers; from there on nothing knows which form it was.
#![allow(unsafe_code, reason = "raw memory is shared with the node here")]

use std::cell::RefCell;
use std::marker::PhantomData;

use crate::{CallRet, Edgefunction, Function, InstanceId, Message, Uuid, memory};

/// The four handlers of a function, whichever form it has.
///
/// `F` is what lives between events; with static handlers there is never a value of it.
#[derive(Debug)]
pub struct Handlers<F> {
    pub(crate) init: fn(Message, Option<Message>) -> Option<F>,
    pub(crate) cast: fn(&mut Option<F>, InstanceId, Message),
    pub(crate) call: fn(&mut Option<F>, InstanceId, Message) -> CallRet,
    pub(crate) stop: fn(Option<F>),
}

/// Chooses the handlers of `F` by the trait that it implements.
///
/// `Select::<F>::HANDLERS` is the inherent constant when `F` is a `Function`, for inherent items
/// go before those of traits; when it is not, the constant of [`ByEdgefunction`] is found instead.
#[derive(Debug)]
pub struct Select<F>(PhantomData<F>);

impl<F: Function> Select<F> {
    /// The handlers of a function that is a value.
    pub const HANDLERS: Handlers<F> = Handlers {
        init: |payload, state| {
            crate::init_logger();
            Some(F::handle_init(payload, state))
        },
        cast: |function, source, message| live(function).handle_cast(source, message),
        call: |function, source, message| live(function).handle_call(source, message),
        stop: |mut function| live(&mut function).handle_stop(),
    };
}

/// Finds the handlers of a type that has static ones.
pub trait ByEdgefunction<F> {
    /// The handlers of a function without a value.
    const HANDLERS: Handlers<F>;
}

impl<F: Edgefunction> ByEdgefunction<F> for Select<F> {
    const HANDLERS: Handlers<F> = Handlers {
        init: |payload, state| {
            F::handle_init(text_or_refuse(payload), state.map(text_or_refuse));
            None
        },
        cast: |_, source, message| {
            if let Some(text) = text(source, message) {
                F::handle_cast(source, text);
            }
        },
        call: |_, source, message| match text(source, message) {
            Some(text) => F::handle_call(source, text),
            None => CallRet::Err,
        },
        stop: |_| F::handle_stop(),
    };
}

/// The one function of the module, and the reply that the node has yet to copy.
#[derive(Debug)]
pub struct Instance<F> {
    function: RefCell<Option<F>>,
    /// Freed by the next `clear` or `call`; until then the node may read it.
    reply: RefCell<Vec<u8>>,
}

impl<F> Instance<F> {
    /// An instance that waits for init.
    pub const fn new() -> Self {
        Instance { function: RefCell::new(None), reply: RefCell::new(Vec::new()) }
    }

    /// Runs the init handler and keeps what it makes.
    pub fn init(&self, handlers: &Handlers<F>, payload: Message, state: Message) {
        let state = (!state.is_empty()).then_some(state);
        let function = (handlers.init)(payload, state);
        self.function.replace(function);
    }

    /// Runs the cast handler.
    pub fn cast(&self, handlers: &Handlers<F>, source: InstanceId, message: Message) {
        (handlers.cast)(&mut self.function.borrow_mut(), source, message);
    }

    /// Runs the call handler and keeps its reply.
    pub fn call(&self, handlers: &Handlers<F>, source: InstanceId, message: Message) -> Answer {
        match (handlers.call)(&mut self.function.borrow_mut(), source, message) {
            CallRet::Noreply => Answer::Noreply,
            CallRet::Err => Answer::Err,
            CallRet::Reply(payload) => {
                let mut reply = self.reply.borrow_mut();
                *reply = payload;
                Answer::Reply { ptr: reply.as_ptr(), len: reply.len() }
            }
        }
    }

    /// Runs the stop handler and drops the function.
    pub fn stop(&self, handlers: &Handlers<F>) {
        (handlers.stop)(self.function.take());
    }

    /// Frees the reply to the last call.
    pub fn clear(&self) {
        self.reply.take();
    }
}

impl<F> Default for Instance<F> {
    fn default() -> Self {
        Self::new()
    }
}

/// The answer to a call, as the node takes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// No reply.
    Noreply,
    /// A reply that the instance keeps.
    Reply {
        /// Where it starts.
        ptr: *const u8,
        /// How long it is.
        len: usize,
    },
    /// An error.
    Err,
}

impl Answer {
    /// Writes where the reply lies, and gives the result code.
    ///
    /// # Safety
    /// Both cells have room for a pointer; they need not be aligned.
    pub unsafe fn write(self, out_ptr: *mut *const u8, out_len: *mut usize) -> i32 {
        match self {
            Answer::Noreply => 0,
            Answer::Reply { ptr, len } => {
                // SAFETY: by the contract above.
                unsafe {
                    out_ptr.write_unaligned(ptr);
                    out_len.write_unaligned(len);
                }
                1
            }
            Answer::Err => 2,
        }
    }
}

/// Sets up what every function has: the report of panics.
pub fn prepare() {
    #[cfg(target_arch = "wasm32")]
    crate::logger::report_panics();
}

/// Gets a buffer for the node.
pub fn alloc(len: usize) -> *mut u8 {
    memory::alloc(len)
}

/// Takes a buffer back from the node.
///
/// # Safety
/// The buffer came from [`alloc`] with this `len` and is freed only here, once.
pub unsafe fn free(buffer: *mut u8, len: usize) {
    // SAFETY: the contract above is that of `memory::free`.
    unsafe { memory::free(buffer, len) }
}

/// Reads a payload.
///
/// # Safety
/// Unless `len` is 0, `payload` points to `len` written bytes that outlive `'a` and do not change meanwhile.
pub unsafe fn message<'a>(payload: *const u8, len: usize) -> Message<'a> {
    // SAFETY: the contract above is that of `memory::borrow`.
    Message::new(unsafe { memory::borrow(payload, len) })
}

/// Reads the id of a sender.
///
/// # Safety
/// Both pointers are to 16 written bytes.
pub unsafe fn source(node_id: *const [u8; 16], component_id: *const [u8; 16]) -> InstanceId {
    // SAFETY: by the contract above; arrays of bytes need no alignment.
    let (node, component) = unsafe { (node_id.read(), component_id.read()) };
    InstanceId { node: Uuid::from_bytes(node), function: Uuid::from_bytes(component) }
}

#[expect(clippy::expect_used, reason = "a node that sends events before init or after stop is broken")]
fn live<F>(function: &mut Option<F>) -> &mut F {
    function.as_mut().expect("a handler called before init or after stop")
}

fn text(source: InstanceId, message: Message) -> Option<String> {
    let text = message.text();
    if text.is_err() {
        crate::init_logger();
        log::warn!("an event from {source} is refused: it is not UTF-8 text");
    }
    text.ok().map(str::to_owned)
}

#[expect(clippy::expect_used, reason = "a trap in init is how a function refuses to start")]
fn text_or_refuse(message: Message) -> String {
    message.text().expect("init payload and state of this function must be UTF-8 text").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{self, Effect};
    use crate::{cast, cast_raw};

    const NODE: [u8; 16] = [1; 16];
    const COMPONENT: [u8; 16] = [2; 16];
    const SOURCE: InstanceId = InstanceId { node: Uuid::from_bytes(NODE), function: Uuid::from_bytes(COMPONENT) };

    /// Remembers what it got; as a `Function` it keeps the payload of init.
    struct Echo(String);

    impl Function for Echo {
        fn handle_init(payload: Message, state: Option<Message>) -> Self {
            Echo(format!("{payload:?} {state:?}"))
        }

        fn handle_cast(&mut self, source: InstanceId, message: Message) {
            cast_raw(source, format!("{} {message}", self.0));
        }

        fn handle_call(&mut self, source: InstanceId, message: Message) -> CallRet {
            match message.text() {
                Ok("nothing") => CallRet::Noreply,
                Ok("empty") => CallRet::reply(""),
                _ => CallRet::reply(format!("{source}: {message}")),
            }
        }

        fn handle_stop(&mut self) {
            cast("last", "stopped");
        }
    }

    impl Drop for Echo {
        fn drop(&mut self) {
            cast("last", "dropped");
        }
    }

    struct Static;

    impl Edgefunction for Static {
        fn handle_cast(src: InstanceId, encoded_message: String) {
            cast("cast", format!("{} {} {encoded_message}", src.node, src.function));
        }

        fn handle_call(_src: InstanceId, encoded_message: String) -> CallRet {
            CallRet::Reply(encoded_message.into())
        }

        fn handle_init(payload: String, serialized_state: Option<String>) {
            cast("init", format!("{payload:?} {serialized_state:?}"));
        }

        fn handle_stop() {
            cast("stop", "");
        }
    }

    /// Says which form was chosen.
    struct Both;

    impl Function for Both {
        fn handle_init(_: Message, _: Option<Message>) -> Self {
            cast("form", "value");
            Both
        }
    }

    impl Edgefunction for Both {
        fn handle_cast(_: InstanceId, _: String) {}
        fn handle_call(_: InstanceId, _: String) -> CallRet {
            CallRet::Noreply
        }
        fn handle_init(_: String, _: Option<String>) {
            cast("form", "static");
        }
        fn handle_stop() {}
    }

    // The macro itself must at least compile for both forms.
    mod exported_static {
        crate::export!(super::Static);
    }
    mod exported {
        crate::export!(super::Echo);
    }

    const ECHO: Handlers<Echo> = Select::<Echo>::HANDLERS;
    const STATIC: Handlers<Static> = Select::<Static>::HANDLERS;
    const BOTH: Handlers<Both> = Select::<Both>::HANDLERS;

    fn echo(payload: &str, state: &str) -> Instance<Echo> {
        let instance = Instance::new();
        instance.init(&ECHO, payload.into(), state.into());
        instance
    }

    /// Reads an answer as the node does: result code, then the cells, then the bytes they point to.
    fn as_the_node_reads(answer: Answer) -> (i32, Option<Vec<u8>>) {
        let (mut ptr, mut len) = (std::ptr::null(), 0);
        // SAFETY: the cells are live variables.
        let result = unsafe { answer.write(&mut ptr, &mut len) };
        // SAFETY: the instance that gave the answer has not been used since.
        let reply = (result == 1).then(|| unsafe { message(ptr, len) }.into());
        (result, reply)
    }

    #[test]
    fn a_value_lives_from_init_to_stop() {
        let instance = echo("window=5", "");
        instance.cast(&ECHO, SOURCE, "hello".into());
        assert_eq!(testing::effects(), [Effect::cast(SOURCE, r#""window=5" None hello"#)]);

        instance.stop(&ECHO);
        assert_eq!(testing::effects(), [Effect::cast("last", "stopped"), Effect::cast("last", "dropped")]);
    }

    /// The ABI cannot tell no state from an empty one, so an empty one must be none in both forms.
    #[test]
    fn an_empty_state_is_no_state() {
        echo("", "41").cast(&ECHO, SOURCE, "".into());
        assert_eq!(testing::effects()[0], Effect::cast(SOURCE, r#""" Some("41") "#));

        Instance::new().init(&STATIC, "".into(), "".into());
        Instance::new().init(&STATIC, "a".into(), "b".into());
        let inits: Vec<_> =
            testing::effects().into_iter().filter(|effect| *effect != Effect::cast("last", "dropped")).collect();
        assert_eq!(inits, [Effect::cast("init", r#""" None"#), Effect::cast("init", r#""a" Some("b")"#)]);
    }

    #[test]
    fn each_kind_of_answer_has_its_code() {
        let instance = echo("", "");
        let reply = instance.call(&ECHO, SOURCE, "hi".into());
        assert_eq!(as_the_node_reads(reply), (1, Some(format!("{SOURCE}: hi").into_bytes())));
        let reply = instance.call(&ECHO, SOURCE, "empty".into());
        assert_eq!(as_the_node_reads(reply), (1, Some(Vec::new())));
        assert_eq!(as_the_node_reads(instance.call(&ECHO, SOURCE, "nothing".into())), (0, None));
        assert_eq!(as_the_node_reads(Answer::Err), (2, None));
    }

    /// The node frees the buffers of the call before, and perhaps allocates before, it looks at the
    /// reply: only clear and the next call may free it.
    #[test]
    fn a_reply_stays_readable_until_clear() {
        let instance = echo("", "");
        let reply = instance.call(&ECHO, SOURCE, "hi".into());
        let others: Vec<Vec<u8>> = (0..100).map(|fill| vec![fill; reply_len(reply)]).collect();
        assert_eq!(as_the_node_reads(reply).1, Some(format!("{SOURCE}: hi").into_bytes()));
        drop(others);
        instance.clear();
    }

    fn reply_len(answer: Answer) -> usize {
        match answer {
            Answer::Reply { len, .. } => len,
            Answer::Noreply | Answer::Err => 0,
        }
    }

    /// Node and component are both 16 bytes, and easily taken for one another.
    #[test]
    fn a_source_has_both_its_ids() {
        // SAFETY: both are references to 16 bytes.
        assert_eq!(unsafe { super::source(&NODE, &COMPONENT) }, SOURCE);

        let instance = Instance::new();
        instance.cast(&STATIC, SOURCE, "hello".into());
        let text = "01010101-0101-0101-0101-010101010101 02020202-0202-0202-0202-020202020202 hello";
        assert_eq!(testing::effects(), [Effect::cast("cast", text)]);
    }

    /// Payloads are bytes, and the static handlers take text: what is none must not be mangled into it.
    #[test]
    fn static_handlers_never_see_what_is_not_text() {
        let (instance, not_text) = (Instance::new(), Message::new(b"\xff"));
        instance.cast(&STATIC, SOURCE, not_text);
        assert_eq!(testing::effects(), []);
        assert_eq!(instance.call(&STATIC, SOURCE, not_text), Answer::Err);
        assert_eq!(testing::logs().len(), 2);
    }

    #[test]
    fn stop_reaches_static_handlers() {
        Instance::new().stop(&STATIC);
        assert_eq!(testing::effects(), [Effect::cast("stop", "")]);
    }

    #[test]
    fn a_type_of_both_forms_is_a_value() {
        Instance::new().init(&BOTH, "".into(), "".into());
        assert_eq!(testing::effects(), [Effect::cast("form", "value")]);
    }

    /// A function that takes casts only must not leave its callers waiting.
    #[test]
    fn a_missing_handler_says_so() {
        let instance = Instance::new();
        instance.init(&BOTH, "".into(), "".into());
        assert_eq!(instance.call(&BOTH, SOURCE, "?".into()), Answer::Err);
        instance.cast(&BOTH, SOURCE, "!".into());
        let texts: Vec<_> = testing::logs().into_iter().map(|line| line.text).collect();
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert!(texts[0].contains("takes casts only"), "{texts:?}");
        assert!(texts[1].contains("takes calls only"), "{texts:?}");
    }

    #[test]
    #[should_panic(expected = "before init or after stop")]
    fn an_event_before_init_is_a_trap() {
        Instance::new().cast(&ECHO, SOURCE, "early".into());
    }
}
