//! A matrix by which vectors are multiplied.

use edgeless_function::Random;

/// A square matrix, row by row. Each row adds up to one, so that a vector of fractions stays one however
/// often it is multiplied.
pub(crate) struct Matrix {
    size: usize,
    values: Vec<f64>,
}

impl Matrix {
    /// A matrix with rows of chance.
    pub(crate) fn random(size: usize, random: &mut Random) -> Self {
        let mut values: Vec<f64> = (0..size * size).map(|_| random.fraction()).collect();
        for row in values.chunks_exact_mut(size) {
            let sum: f64 = row.iter().sum();
            // All zero is possible, though hardly ever.
            if sum > 0.0 {
                row.iter_mut().for_each(|value| *value /= sum);
            }
        }
        Matrix { size, values }
    }

    /// The product with a vector; `None` if the vector has another size.
    pub(crate) fn by(&self, vector: &[f64]) -> Option<Vec<f64>> {
        let product = |row: &[f64]| row.iter().zip(vector).map(|(value, factor)| value * factor).sum();
        (vector.len() == self.size).then(|| self.values.chunks_exact(self.size).map(product).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_is_the_one_that_was_worked_out_by_hand() {
        let matrix = Matrix { size: 2, values: vec![1.0, 2.0, 3.0, 4.0] };
        assert_eq!(matrix.by(&[5.0, 6.0]), Some(vec![17.0, 39.0]));
        assert_eq!(matrix.by(&[5.0]), None);
    }

    #[test]
    fn fractions_stay_fractions() {
        let mut random = Random::new(7);
        let matrix = Matrix::random(50, &mut random);
        let mut vector: Vec<f64> = (0..50).map(|_| random.fraction()).collect();
        for _ in 0..100 {
            vector = matrix.by(&vector).unwrap();
        }
        assert!(vector.iter().all(|value| (0.0..1.0).contains(value) && *value > 0.1), "{vector:?}");
    }
}
