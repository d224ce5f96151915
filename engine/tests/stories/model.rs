//! What each block may read as: a register whose writes may be acknowledged, fail, or be cut off by a crash.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

use block_device::{BlockDevice, Outcome, Request, Slice, execute};
use engine::Engine;
use reactor::{random, spawn};

use crate::fakes::BLOCK;

/// Writes a block of one byte.
pub(crate) async fn write(device: &dyn BlockDevice, block: u64, byte: u8) -> Outcome {
    let request = Request::write(block * BLOCK, Slice::from(&vec![byte; BLOCK as usize][..]));
    execute(device, request).await
}

/// The blocks of a volume. Each worker has blocks of its own, so that a block sees one request at a time.
pub(crate) struct Model {
    blocks: RefCell<Vec<Block>>,
    /// Raised by a crash: what workers of before learn afterwards does not count.
    generation: Cell<u32>,
}

#[derive(Clone, Default)]
struct Block {
    /// Empty means zero only.
    possible: BTreeSet<u8>,
    /// A request is in flight.
    used: bool,
}

impl Block {
    fn values(&self) -> BTreeSet<u8> {
        if self.possible.is_empty() { BTreeSet::from([0]) } else { self.possible.clone() }
    }
}

impl Model {
    pub(crate) fn new(blocks: u64) -> Rc<Self> {
        Rc::new(Self { blocks: RefCell::new(vec![Block::default(); blocks as usize]), generation: Cell::new(0) })
    }

    /// Runs `count` random requests, `workers` at a time. Errors are fine, wrong data is not.
    pub(crate) async fn run(self: &Rc<Self>, engine: &Rc<Engine>, workers: u64, count: u64) {
        let tasks: Vec<_> = (0..workers)
            .map(|_| {
                let (model, engine) = (Rc::clone(self), Rc::clone(engine));
                spawn(async move {
                    for _ in 0..count / workers {
                        model.step(&engine).await;
                    }
                })
            })
            .collect();
        let tasks = Guard(tasks);
        for task in &tasks.0 {
            while !task.is_finished() {
                reactor::sleep(std::time::Duration::from_millis(1)).await;
            }
        }
    }

    /// A free block; most requests go to few of them, so that they meet copies and each other.
    fn take_block(&self) -> u64 {
        let mut blocks = self.blocks.borrow_mut();
        loop {
            let among = if random().is_multiple_of(3) { blocks.len() as u64 } else { 64 };
            let block = random() % among;
            if !std::mem::replace(&mut blocks[block as usize].used, true) {
                return block;
            }
        }
    }

    async fn step(&self, engine: &Engine) {
        let generation = self.generation.get();
        let block = self.take_block();
        match random() % 8 {
            0 | 1 => self.read(engine, block, generation).await,
            2 => {
                let ranges = [block_device::Range { offset: block * BLOCK, length: BLOCK }].into_iter().collect();
                self.change(engine, block, 0, Request::Unmap { ranges }, generation).await;
            }
            3 => {
                let range = block_device::Range { offset: block * BLOCK, length: BLOCK };
                let request = Request::WriteZeroes { range, unmap: random().is_multiple_of(2), fua: false };
                self.change(engine, block, 0, request, generation).await;
            }
            _ => {
                let byte = 1 + (random() % 255) as u8;
                let data = Slice::from(&vec![byte; BLOCK as usize][..]);
                let request = Request::Write { offset: block * BLOCK, data, fua: random().is_multiple_of(4) };
                self.change(engine, block, byte, request, generation).await;
            }
        }
        if self.generation.get() == generation {
            self.blocks.borrow_mut()[block as usize].used = false;
        }
    }

    async fn change(&self, engine: &Engine, block: u64, byte: u8, request: Request, generation: u32) {
        {
            let block = &mut self.blocks.borrow_mut()[block as usize];
            block.possible = block.values();
            block.possible.insert(byte);
        }
        let outcome = execute(engine, request).await;
        if self.generation.get() == generation && outcome.is_ok() {
            self.blocks.borrow_mut()[block as usize].possible = BTreeSet::from([byte]);
        }
    }

    async fn read(&self, engine: &Engine, block: u64, generation: u32) {
        let outcome = execute(engine, Request::read(block * BLOCK, BLOCK)).await;
        let Ok(data) = outcome else { return };
        if self.generation.get() == generation {
            self.saw(block, &data.to_vec());
        }
    }

    /// I7, I9, I10: what was read once is what the block reads as from then on.
    fn saw(&self, block: u64, data: &[u8]) {
        assert!(data.iter().all(|byte| *byte == data[0]), "block {block} is torn");
        let state = &mut self.blocks.borrow_mut()[block as usize];
        let values = state.values();
        assert!(values.contains(&data[0]), "block {block} reads {} instead of one of {values:?}", data[0]);
        state.possible = BTreeSet::from([data[0]]);
    }

    /// The engine crashed: requests in flight have an unknown end.
    pub(crate) fn crashed(&self) {
        self.generation.set(self.generation.get() + 1);
        self.blocks.borrow_mut().iter_mut().for_each(|block| block.used = false);
    }

    pub(crate) async fn check_some(&self, engine: &Engine, count: u64) {
        for _ in 0..count {
            let block = self.take_block();
            self.read(engine, block, self.generation.get()).await;
            self.blocks.borrow_mut()[block as usize].used = false;
        }
    }

    /// Reads every block.
    pub(crate) async fn check_all(&self, engine: &Engine) {
        let blocks = self.blocks.borrow().len() as u64;
        for block in 0..blocks {
            let data = execute(engine, Request::read(block * BLOCK, BLOCK)).await.expect("everything can be read");
            self.saw(block, &data.to_vec());
        }
    }

    /// Checks a replica's content against what was read.
    pub(crate) fn check_content(&self, content: &[u8]) {
        for (block, data) in content.chunks(BLOCK as usize).enumerate() {
            self.saw(block as u64, data);
        }
    }
}

/// Ends workers with whoever waits for them.
struct Guard(Vec<reactor::JoinHandle<()>>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.iter().for_each(reactor::JoinHandle::abort);
    }
}
