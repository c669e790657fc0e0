//! What a training step on the CPU takes of the allocator, counted: as much as the plan states, however many prototypes there are.

use dino_host::cpu::{Cpu, NoOptions};
use dino_host::device::{Device, Part, Step};
use dino_kernel::crops::{Crops, Group};
use dino_kernel::model::{Backbone, Head, Vit};
use dino_kernel::ops::layernorm::EPS;
use dino_kernel::ops::position::Interpolation;
use dino_kernel::plan::{Config, Plan};
use dino_kernel::scalars::monitor;
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use tests::plans::ordinary;
use tests::training::{Run, hyper_numbers, normals};

/// The system's allocator, counting what is out and the most that ever was.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn took(bytes: usize) {
    MOST.fetch_max(NOW.fetch_add(bytes, Relaxed) + bytes, Relaxed);
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        took(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// One measurement at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// A small network on large images, so that a step takes a tenth of a gigabyte and little time.
fn plan(prototypes: usize, batch: usize, micro_batch: usize, stream_crops: bool) -> Plan {
    let backbone = Backbone::Vit(Vit {
        image: 96,
        patch: 8,
        channels: 3,
        dim: 96,
        depth: 3,
        heads: 3,
        mlp: 384,
        positions: Interpolation::Published,
        eps: EPS,
    });
    let head =
        Head { inp: 96, layers: 3, hidden: 128, bottleneck: 32, prototypes, train_gain: false, ..Head::PUBLISHED };
    let group = |count, side| Group { count, height: side, width: side };
    let views = Crops::one(group(2, 96)).with(group(2, 48));
    let ordinary = ordinary(backbone, head, views, [batch, micro_batch]);
    let config = Config { drop_path: true, recompute: Cpu::RECOMPUTE, stream_crops, ..ordinary };
    Plan::new(config).expect("a valid plan")
}

/// Bytes that the plan states, and the most that the allocator gave for a device and two steps; the crops are the host's.
fn predicted_and_taken(plan: Plan) -> [f64; 2] {
    let pixels: Vec<f32> = normals(1, plan.pixels.len()).iter().map(|&x| x as f32).collect();
    let part = |_| Part { drop: vec![1.0; plan.drop.len()], pixels: &pixels };
    let hyper = hyper_numbers().numbers(&plan).map(|x| x as f32);
    let step = Step { hyper, parts: (0..plan.parts()).map(part).collect() };
    let own: u64 = Cpu::memory(&NoOptions {}, plan.pools).iter().map(|item| item.1).sum();
    let predicted = own + rayon::current_num_threads() as u64 * Cpu::thread_scratch(plan.pools);

    let before = NOW.load(Relaxed);
    let mut run = Run::random(plan, Cpu::new(&NoOptions {}, plan.pools).expect("it fits this machine"), 2);
    MOST.store(NOW.load(Relaxed), Relaxed); // the parameters came by way of copies that are gone
    for _ in 0..2 {
        run.o.step(&plan, &step).expect("a CPU does not fail");
    }
    assert_eq!(run.monitor(monitor::FINITE), 1.0);
    [predicted as f64, (MOST.load(Relaxed) - before) as f64]
}

/// On as many threads, whatever the machine has: every thread has scratch of its own (scores, packed tiles).
fn on_threads(threads: usize, plan: Plan) -> [f64; 2] {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
    pool.install(|| predicted_and_taken(plan))
}

#[test]
fn a_step_takes_what_the_plan_states() {
    let _alone = ALONE.lock();
    for (threads, prototypes, batch, micro_batch, stream) in [
        (2, 4096, 16, 16, false),
        (2, 4096, 16, 8, false),
        (2, 65536, 8, 8, false),
        (2, 4096, 16, 16, true),
        (8, 4096, 16, 16, false),
    ] {
        let [predicted, taken] = on_threads(threads, plan(prototypes, batch, micro_batch, stream));
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        println!(
            "{threads} threads, K {prototypes}, batch {batch} in {micro_batch}s, crops in several passes {stream}: planned {:.1} MiB, taken {:.1}",
            mib(predicted),
            mib(taken)
        );
        // Of more threads than cores only some pack a matmul at any one time.
        let least = if threads == 2 { 0.97 } else { 0.9 };
        assert!((least..=1.03).contains(&(taken / predicted)), "planned {predicted}, taken {taken}");
    }
}

/// 262144 prototypes at batch 64 take what 4096 do, and beyond that the five copies of the further ones, center and scales.
#[test]
fn prototypes_cost_their_own_copies_and_nothing_else() {
    let _alone = ALONE.lock();
    let (few, many) = (plan(4096, 64, 8, false), plan(262_144, 64, 8, false));
    let [_, with_few] = on_threads(2, few);
    let [_, with_many] = on_threads(2, many);
    let further = (262_144 - 4096) as f64 * 4.0;
    let (columns, five_copies) = (few.table.head.bottleneck as f64, 5.0);
    // Direction and gain of every prototype; its center; its scale in either network.
    let allowed = with_few + further * (five_copies * (columns + 1.0) + 1.0 + 2.0);
    println!("4096: {with_few:.0} bytes; 262144: {with_many:.0}, allowed {allowed:.0}");
    assert!(with_many <= 1.01 * allowed, "{with_many} bytes, {allowed} would do");
}
