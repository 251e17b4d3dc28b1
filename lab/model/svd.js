// The rank slider: A and B rewritten so that the directions of A·B come in the order of their size.
//
// A (r, d) and B (r, k), one row for each direction, as the lab keeps them (A transposed), Float32Arrays. Returns
// another A and B with the same product, whose directions are the product's singular ones, largest first: the first q
// rows of both are the nearest product of rank q (Eckart and Young, 1936). And `sizes`, the r singular values.
//
// The product itself, (d, k), is never formed. With orthonormal rows Qa and Qb, and A = Raᵀ·Qa, B = Rbᵀ·Qb, it is
// Qaᵀ·M·Qb, and only M = Ra·Rbᵀ, (r, r), needs a singular value decomposition.
export function orderBySize(A, B, r, d, k) {
  const a = orthonormalRows(rowsOf(A, r, d));
  const b = orthonormalRows(rowsOf(B, r, k));
  const M = a.R.map(row => Float64Array.from(b.R, other => dot(row, other)));
  const { sizes, right } = singular(M);
  const order = [...sizes.keys()].sort((i, j) => sizes[j] - sizes[i]);
  const out = { A: new Float32Array(r * d), B: new Float32Array(r * k), sizes: order.map(j => sizes[j]) };
  order.forEach((j, n) => {
    if (sizes[j] === 0) return;
    // M's right direction v gives the left one, M·v = size·u. Each side takes the root of the size.
    const v = right[j].map(x => x * Math.sqrt(sizes[j]));
    const u = Float64Array.from(M, row => dot(row, v) / sizes[j]);
    out.A.set(combined(u, a.Q), n * d);
    out.B.set(combined(v, b.Q), n * k);
  });
  return out;
}

function rowsOf(matrix, r, m) {
  return Array.from({ length: r }, (_, i) => Float64Array.from(matrix.subarray(i * m, i * m + m)));
}

// Rows as Rᵀ·Q, the rows of Q orthonormal: Gram-Schmidt in float64, twice over, which is enough.
// A row that the ones before it make up leaves a row of zeros.
function orthonormalRows(Q) {
  const R = Q.map(() => new Float64Array(Q.length)); // row i of the matrix is Σ R[j][i]·Q[j]
  Q.forEach((row, i) => {
    const before = Math.sqrt(dot(row, row));
    for (let pass = 0; pass < 2; pass++) {
      for (let j = 0; j < i; j++) {
        const along = dot(Q[j], row);
        R[j][i] += along;
        addTimes(-along, Q[j], row);
      }
    }
    const length = Math.sqrt(dot(row, row));
    if (length <= 1e-12 * before) {
      row.fill(0);
      return;
    }
    R[i][i] = length;
    for (let t = 0; t < row.length; t++) row[t] /= length;
  });
  return { Q, R };
}

// The singular values of M (r, r) and, for each, its right direction, by one-sided Jacobi: turn pairs of rows until all
// are at right angles. The turned rows are the sizes times the right directions.
function singular(M) {
  const rows = M.map(row => row.slice()).sort((a, b) => dot(b, b) - dot(a, a)); // longest first: fewer sweeps
  const r = rows.length;
  const squares = rows.map(row => dot(row, row));
  const tiny = 1e-32 * Math.max(...squares); // a row as short as the rounding of the longest is zero
  for (let sweep = 0, turned = true; turned && sweep < 60; sweep++) {
    turned = false;
    for (let p = 0; p < r; p++) {
      for (let q = p + 1; q < r; q++) {
        const [pp, qq] = [squares[p], squares[q]];
        if (pp <= tiny || qq <= tiny) continue;
        const pq = dot(rows[p], rows[q]);
        if (Math.abs(pq) <= 1e-14 * Math.sqrt(pp * qq)) continue;
        turned = true;
        const z = (qq - pp) / (2 * pq);
        const tangent = (z < 0 ? -1 : 1) / (Math.abs(z) + Math.sqrt(1 + z * z));
        turnRows(rows[p], rows[q], tangent);
        squares[p] = dot(rows[p], rows[p]);
        squares[q] = dot(rows[q], rows[q]);
      }
    }
  }
  const sizes = squares.map(square => (square <= tiny ? 0 : Math.sqrt(square)));
  return { sizes, right: rows.map((row, j) => row.map(x => (sizes[j] ? x / sizes[j] : 0))) };
}

function turnRows(p, q, tangent) {
  const cosine = 1 / Math.sqrt(1 + tangent * tangent);
  const sine = cosine * tangent;
  for (let t = 0; t < p.length; t++) {
    const x = p[t];
    const y = q[t];
    p[t] = cosine * x - sine * y;
    q[t] = sine * x + cosine * y;
  }
}

// Four sums at a time, so that none waits for the one before.
function dot(a, b) {
  const n = a.length;
  const whole = n - (n % 4);
  let s0 = 0;
  let s1 = 0;
  let s2 = 0;
  let s3 = 0;
  for (let t = 0; t < whole; t += 4) {
    s0 += a[t] * b[t];
    s1 += a[t + 1] * b[t + 1];
    s2 += a[t + 2] * b[t + 2];
    s3 += a[t + 3] * b[t + 3];
  }
  for (let t = whole; t < n; t++) s0 += a[t] * b[t];
  return s0 + s1 + s2 + s3;
}

function addTimes(c, x, y) {
  for (let t = 0; t < y.length; t++) y[t] += c * x[t];
}

// Σ weights[i]·rows[i]
function combined(weights, rows) {
  const sum = new Float64Array(rows[0].length);
  for (let i = 0; i < rows.length; i++) addTimes(weights[i], rows[i], sum);
  return sum;
}
