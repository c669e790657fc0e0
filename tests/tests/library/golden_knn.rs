//! The k-nearest-neighbors vote against golden tensors.

use dino_host::dist::Group;
use dino_host::eval::knn::{self, neighbors};
use ndarray::Array2;
use tests::fixture::{Fixture, Tensor};

fn rows(t: &Tensor) -> Array2<f32> {
    Array2::from_shape_vec((t.rows(), t.last()), t.data.iter().map(|&x| x as f32).collect())
        .expect("the shape it came with")
}

#[test]
fn votes() {
    let f = Fixture::open("knn");
    let (bank, queries) = (rows(f.get("bank")), rows(f.get("queries")));
    let labels = |name: &str| f.get(name).data.iter().map(|&x| x as u32).collect::<Vec<_>>();
    let (bank_labels, query_labels) = (labels("bank_labels"), labels("query_labels"));
    let hp = &f.get("hp").data;
    let (temperature, classes) = ((hp[0] * 1e6).round() / 1e6, hp[1] as usize);
    let mut seen = 0;
    for k in 1..=bank.nrows() {
        if !f.has(&format!("k{k}.sims")) {
            continue;
        }
        seen += 1;
        let found = neighbors(bank.view(), queries.view(), k);
        f.assert_golden(&format!("k{k}.sims"), &found.similarities.iter().map(|&x| x as f64).collect::<Vec<_>>());
        // Neighbors closer together than rounding may swap.
        let want = f.get(&format!("k{k}.indices"));
        let settled: Vec<f64> = found
            .indices
            .iter()
            .zip(&want.data)
            .enumerate()
            .map(|(at, (&got, &want))| {
                let similarity = |i: usize| queries.row(at / k).dot(&bank.row(i));
                let apart = (similarity(got as usize) - similarity(want as usize)).abs();
                if apart < 1e-6 { want } else { got as f64 }
            })
            .collect();
        f.assert_golden(&format!("k{k}.indices"), &settled);
        // Votes by their logarithms, less the largest similarity / T.
        let mut votes = vec![0.0; queries.nrows() * classes];
        for (q, row) in votes.chunks_mut(classes).enumerate() {
            let largest = found.similarities[q * k] as f64;
            for (class, log) in found.answers(q, &bank_labels, k, temperature) {
                row[class as usize] = (log + largest / temperature).exp();
            }
        }
        f.assert_golden(&format!("k{k}.scores"), &votes);
        let predicted = knn::predict(&found, &bank_labels, k, temperature);
        f.assert_golden(&format!("k{k}.pred"), &predicted.into_iter().map(f64::from).collect::<Vec<_>>());
        let score = &knn::evaluate(
            bank.clone(),
            &bank_labels,
            queries.clone(),
            &query_labels,
            &[k],
            temperature,
            &Group::default(),
        )
        .unwrap()[0];
        f.assert_golden(&format!("k{k}.top1"), &[score.top1]);
        if f.has(&format!("k{k}.top5")) {
            f.assert_golden(&format!("k{k}.top5"), &[score.top5]);
        }
    }
    assert!(seen > 0, "no k in the fixture");
    f.finish("k-NN", &["k"], &[]);
}
