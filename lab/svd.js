// The rank slider: A·B written anew so that its directions come in the order of their size.
// A (r, d) and B (r, k), one row for each direction, as the lab keeps them (A transposed), Float32Arrays.
// Returns other A and B with the same product, whose directions are the product's singular ones, largest first:
// the first q rows of both are the nearest product of rank q (Eckart and Young, 1936). And `sizes`, the r singular
// values. The product itself, (d, k), is never formed: with orthonormal rows Qa and Qb, and A = Raᵀ·Qa, B = Rbᵀ·Qb,
// it is Qaᵀ·(Ra·Rbᵀ)·Qb, and only the matrix in the middle, (r, r), needs a singular value decomposition.
export function orderBySize(A, B, r, d, k) {
  const a = orthonormalRows(A, r, d);
  const b = orthonormalRows(B, r, k);
  const middle = square(r, (i, j) => sum(r, t => a.R[i][t] * b.R[j][t])); // Ra·Rbᵀ
  const { US, V } = singular(middle, r);
  const sizes = Array.from({ length: r }, (_, j) => Math.hypot(...US.map(row => row[j])));
  const order = [...sizes.keys()].sort((i, j) => sizes[j] - sizes[i]);
  const out = { A: new Float32Array(r * d), B: new Float32Array(r * k), sizes: order.map(j => sizes[j]) };
  order.forEach((j, n) => {
    if (sizes[j] === 0) return;
    const half = Math.sqrt(sizes[j]); // each side takes the root of a direction's size
    for (let t = 0; t < d; t++) out.A[n * d + t] = (half / sizes[j]) * sum(r, i => US[i][j] * a.Q[i][t]);
    for (let t = 0; t < k; t++) out.B[n * k + t] = half * sum(r, i => V[i][j] * b.Q[i][t]);
  });
  return out;
}

// M (r, m) as Rᵀ·Q, the rows of Q orthonormal: Gram-Schmidt in float64, twice over, which is enough.
// A row that the ones before it make up leaves a row of zeros.
function orthonormalRows(M, r, m) {
  const Q = Array.from({ length: r }, (_, i) => Float64Array.from(M.subarray(i * m, i * m + m)));
  const R = square(r, () => 0); // row i of M is Σ R[j][i]·Q[j]
  for (let i = 0; i < r; i++) {
    const before = Math.sqrt(sum(m, t => Q[i][t] ** 2));
    for (let pass = 0; pass < 2; pass++) {
      for (let j = 0; j < i; j++) {
        const along = sum(m, t => Q[j][t] * Q[i][t]);
        R[j][i] += along;
        for (let t = 0; t < m; t++) Q[i][t] -= along * Q[j][t];
      }
    }
    const length = Math.sqrt(sum(m, t => Q[i][t] ** 2));
    if (length <= 1e-12 * before) {
      Q[i].fill(0);
      continue;
    }
    R[i][i] = length;
    for (let t = 0; t < m; t++) Q[i][t] /= length;
  }
  return { Q, R };
}

// One-sided Jacobi: turn pairs of columns of K until all are at right angles. Then K is U·S, and V has the turns.
function singular(K, r) {
  const V = square(r, (i, j) => Number(i === j));
  for (let sweep = 0, turned = true; turned && sweep < 60; sweep++) {
    turned = false;
    for (let p = 0; p < r; p++) {
      for (let q = p + 1; q < r; q++) {
        const pp = sum(r, i => K[i][p] ** 2);
        const qq = sum(r, i => K[i][q] ** 2);
        const pq = sum(r, i => K[i][p] * K[i][q]);
        if (Math.abs(pq) <= 1e-15 * Math.sqrt(pp * qq)) continue;
        turned = true;
        const z = (qq - pp) / (2 * pq);
        const tangent = (z < 0 ? -1 : 1) / (Math.abs(z) + Math.sqrt(1 + z * z));
        const cosine = 1 / Math.sqrt(1 + tangent * tangent);
        for (const matrix of [K, V]) turnColumns(matrix, p, q, cosine, cosine * tangent);
      }
    }
  }
  return { US: K, V };
}

function turnColumns(matrix, p, q, cosine, sine) {
  for (const row of matrix) {
    const [x, y] = [row[p], row[q]];
    row[p] = cosine * x - sine * y;
    row[q] = sine * x + cosine * y;
  }
}

function square(r, value) {
  return Array.from({ length: r }, (_, i) => Float64Array.from({ length: r }, (_, j) => value(i, j)));
}

function sum(count, term) {
  let total = 0;
  for (let i = 0; i < count; i++) total += term(i);
  return total;
}
