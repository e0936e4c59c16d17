//! Square matrices and their product.

use edgeless_function::Random;

/// A square matrix, row by row.
#[derive(Debug, PartialEq)]
pub(crate) struct Matrix {
    size: usize,
    values: Vec<f64>,
}

impl Matrix {
    /// A matrix of zeros.
    pub(crate) fn zero(size: usize) -> Self {
        Matrix { size, values: vec![0.0; size * size] }
    }

    /// A matrix of fractions.
    pub(crate) fn random(size: usize, random: &mut Random) -> Self {
        Matrix { size, values: (0..size * size).map(|_| random.fraction()).collect() }
    }

    /// Becomes the product of two matrices of its own size.
    pub(crate) fn set_product(&mut self, left: &Matrix, right: &Matrix) {
        self.values.fill(0.0);
        let rows = left.values.chunks_exact(self.size).zip(self.values.chunks_exact_mut(self.size));
        for (left, product) in rows {
            // Row by row of the right matrix, which is how it lies in memory.
            for (factor, right) in left.iter().zip(right.values.chunks_exact(self.size)) {
                for (sum, value) in product.iter_mut().zip(right) {
                    *sum += factor * value;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn product(size: usize, left: &[f64], right: &[f64]) -> Vec<f64> {
        let matrix = |values: &[f64]| Matrix { size, values: values.to_vec() };
        let mut product = Matrix::zero(size);
        // What a former product left behind must not count.
        product.values.fill(7.0);
        product.set_product(&matrix(left), &matrix(right));
        product.values
    }

    #[test]
    fn a_product_is_the_one_that_was_worked_out_by_hand() {
        let (left, right) = ([1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]);
        assert_eq!(product(2, &left, &right), [19.0, 22.0, 43.0, 50.0]);
        assert_eq!(product(2, &right, &left), [23.0, 34.0, 31.0, 46.0], "the order counts");
    }

    #[test]
    fn the_identity_changes_nothing() {
        let size = 17;
        let random = Matrix::random(size, &mut Random::new(1));
        let identity: Vec<f64> = (0..size * size).map(|at| f64::from(u8::from(at % (size + 1) == 0))).collect();
        assert_eq!(product(size, &random.values, &identity), random.values);
        assert_eq!(product(size, &identity, &random.values), random.values);
    }
}
