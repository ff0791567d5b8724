//! Contenders that take turns. A machine has other things to do: it slows whoever runs at that moment. So each round gives
//! every contender a short turn, a ratio is taken within a round, and the median of all rounds is told.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

/// The figures of some contenders, round by round. A figure is a rate: more is better.
pub struct Rounds<const N: usize>(Vec<[f64; N]>);

impl<const N: usize> Default for Rounds<N> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<const N: usize> Rounds<N> {
    pub fn add(&mut self, figures: [f64; N]) {
        self.0.push(figures);
    }

    /// A contender's median.
    pub fn median(&self, contender: usize) -> f64 {
        median(self.0.iter().map(|round| round[contender]))
    }

    /// The median of a contender's ratio to another one, and between which values the middle half of all rounds lies.
    pub fn ratio(&self, contender: usize, other: usize) -> String {
        let mut ratios: Vec<f64> = self.0.iter().map(|round| round[contender] / round[other]).collect();
        ratios.sort_by(f64::total_cmp);
        let (low, high) = (ratios[ratios.len() / 4], ratios[(ratios.len() * 3 / 4).min(ratios.len() - 1)]);
        format!("{:.2} ({low:.2}-{high:.2})", median(ratios))
    }
}

pub fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Calls per second of so many callers at once, each of which waits for its call before its next one.
pub async fn rate<T, F>(
    callers: usize,
    turn: Duration,
    work: Vec<T>,
    call: impl Fn(T) -> F + Clone + Send + 'static,
) -> f64
where
    T: Send + 'static,
    F: Future<Output = ()> + Send,
{
    let mut queues: Vec<Vec<T>> = (0..callers).map(|_| Vec::new()).collect();
    for (number, work) in work.into_iter().enumerate() {
        queues[number % callers].push(work);
    }
    let start = Instant::now();
    let mut running = JoinSet::new();
    for queue in queues {
        let call = call.clone();
        running.spawn(async move {
            let mut done = 0;
            for work in queue {
                if start.elapsed() >= turn {
                    break;
                }
                call(work).await;
                done += 1;
            }
            done
        });
    }
    let done: usize = running.join_all().await.into_iter().sum();
    done as f64 / start.elapsed().as_secs_f64()
}
