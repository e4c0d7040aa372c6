/**
 * The commands that a plan is made of: the whole language between TypeScript, which decides, and the addon, which computes.
 * Every device implements the same list. All matrices are row-major with a row stride; activations and gradients are fp32 on the
 * CPU, weights may be fp32, bf16 or fp16, index operands are i32. A `?` marks an operand that may be absent, `…` a repeated tail.
 *
 * n = packed tokens, m = rows that carry a label, s = sequences: their live counts are given for each run (at most what the plan
 * was built for). A command writes its outputs (=) unless it says that it accumulates (+=).
 */
export interface CommandSignature {
  /** Operands; outputs first. */
  readonly tensors: readonly string[]
  readonly outputs: number
  readonly ints: readonly string[]
  readonly floats: readonly string[]
}

const signature = (outputs: string, inputs: string, ints = '', floats = ''): CommandSignature => {
  const words = (text: string) => text.split(' ').filter((word) => word !== '')
  return {
    tensors: [...words(outputs), ...words(inputs)],
    outputs: words(outputs).length,
    ints: words(ints),
    floats: words(floats),
  }
}

export const commandSignatures = {
  /**
   * c = [c +] alpha·op(a)op(b) + Σ_j alpha_j·a_j·op(b_j) + bias + add.
   * mode 0: a[m,k] b[n,k] (Y = XWᵀ); 1: a[m,k] b[k,n] (dX = dY·W); 2: a[k,m] b[k,n] (dW = dYᵀX).
   * Low-rank pairs (a_j, b_j) add to the columns of c from column_j on: that is how LoRA rides in the same pass.
   * precision 0: fp32; 1: operands rounded to bf16 while packed, sums in fp32; 2, on a GPU with fp32 operands: rounded to TF32. 2mnk FLOPs.
   */
  gemm: signature('c', 'a b bias? add? …lowA …lowB', 'mode accumulate precision …column', 'alpha …alpha'),
  /**
   * What the adapters of one input pass on (arXiv 2106.09685): for each part j, columns [column_j, column_j + width_j) of dY and the rows
   * of b and dB that follow those of the parts before, dU_j = alpha·dY_j·b_j and dB_j += dY_jᵀ·u_j. u and dU [n, parts·r] hold the parts
   * beside each other, b and dB [Σ width, r] below each other. Precision as in gemm. 4·n·r·Σ width FLOPs in one pass over dY.
   */
  loraGrad: signature('dU dB', 'dY u b', 'precision …column …width', 'alpha'),
  /** out[n,h] = scale · table[ids]. */
  embed: signature('out', 'ids table', '', 'scale'),
  /** dTable[V,h] += scale · Σ dOut of the rows with that id, in row order. */
  embedGrad: signature('dTable', 'ids dOut', '', 'scale'),
  /**
   * Root-mean-square norm of each of `groups` equal column groups: r = 1/√(mean x² + eps); y = x·r·w (or ·(1+w)).
   * w has the width of one group, or of all groups. rstd[n,groups] = r. arXiv 1910.07467.
   */
  rmsNorm: signature('y rstd', 'x w', 'groups plusOne', 'eps'),
  /** dx (+)= r·(g − x̂·mean(g⊙x̂)) with g = dy⊙w, x̂ = x·r; dw += Σ_rows dy⊙x̂. dx may share memory with dy. */
  rmsNormGrad: signature('dx dw?', 'dy x w rstd', 'groups plusOne accumulate'),
  /** y = (x−μ)·r·w + b in each group (w absent: 1), r = 1/√(var + eps). stats[n, 2·groups] = (μ, r) pairs. arXiv 1607.06450. */
  layerNorm: signature('y stats', 'x w? b?', 'groups', 'eps'),
  /** dx (+)= r·(g − mean g − x̂·mean(g⊙x̂)); dw += Σ dy⊙x̂; db += Σ dy. dx may share memory with dy. */
  layerNormGrad: signature('dx dw? db?', 'dy x w? stats', 'groups accumulate'),
  /**
   * cosSin[n, 2·half]: cos then sin of positions[i]·inverseFrequency[table[i]], times factor[table[i]].
   * The angle is rounded to fp32 before cos and sin, as HF transformers does.
   */
  ropeTable: signature('cosSin', 'positions table inverseFrequency factor'),
  /**
   * Rotates the first 2·half columns of each of `heads` heads of x [n, heads·headDim]: (a,b) → (a·cos − b·sin, b·cos + a·sin),
   * pairs (i, i+half), or (2i, 2i+1) when interleaved; `inverse` turns back (the gradient). y may be x. arXiv 2104.09864.
   */
  rope: signature('y', 'x cosSin', 'heads headDim interleaved inverse'),
  /**
   * Causal attention over packed sequences: sequence j has query rows qStart[j] … qStart[j+1]−1 and key/value rows
   * kvStart[j] … kvStart[j]+kvLength[j]−1. Query row i of a sequence stands at position p = kvLength − queries + i and sees keys
   * t ≤ p with p − t < window (0: no window). Query head h uses kv head ⌊h·kvHeads/heads⌋. score = scale·q·k, then
   * softcap·tanh(score/softcap) unless softcap is 0. o[n, heads·d]; lse[n, heads] = log Σ exp(score). No score matrix is stored.
   * arXiv 2205.14135. 4·d FLOPs per visible pair and head.
   */
  attention: signature('o lse', 'q k v qStart kvStart kvLength', 'heads kvHeads window', 'scale softcap'),
  /**
   * Gradient of `attention` from (o, lse): P = exp(S − lse); dV = PᵀdO; dS = P⊙(dO·Vᵀ − delta), delta = rowsum(dO⊙o);
   * dQ = scale·dS·K; dK = scale·dSᵀQ; softcap multiplies dS by 1 − (S/softcap)². delta[n, heads] is scratch. Deterministic.
   */
  attentionGrad: signature('dq dk dv delta', 'dO o lse q k v qStart kvStart kvLength', 'heads kvHeads window', 'scale softcap'),
  /** h = act(gate)⊙up. kind 0 silu, 1 gelu (tanh form), 2 gelu (erf form). arXiv 2002.05202. */
  glu: signature('h', 'gate up', 'kind'),
  /** dGate = dH⊙up⊙act′(gate); dUp = dH⊙act(gate); h as glu makes it. dGate may be gate's memory, dUp up's and h dH's. */
  gluGrad: signature('dGate dUp h?', 'dH gate up', 'kind'),
  /** y = act(x), kinds as in glu, 3 relu², 4 relu, 5 1/(1+e⁻ˣ). */
  activation: signature('y', 'x', 'kind'),
  /** dx = dy⊙act′(x). dx may be dy's memory. */
  activationGrad: signature('dx', 'dy x', 'kind'),
  /** y = alpha·a + beta·b (b absent: alpha·a). y may be a or b. */
  add: signature('y', 'a b?', '', 'alpha beta'),
  /** out[1,c] += alpha · Σ_rows x[n,c], rows in order: the gradient of a bias. */
  columnSum: signature('out', 'x', '', 'alpha'),
  /** y[i] = x[index[i]], zeros where index[i] is −1. m rows. */
  gatherRows: signature('y', 'x index'),
  /** y[index[i]] (+)= x[i]; without accumulate all other rows of y become zero. Indices are distinct; −1 skips the row. */
  scatterRows: signature('y', 'x index', 'accumulate'),
  /** cache[slots[i]] = x[i] for n rows: keys and values enter the cache. */
  storeRows: signature('cache', 'x slots'),
  /**
   * y (+)= x·keep/(1−p), keep from Philox4x32-10 (SC'11, Salmon et al.): key (seed, step), counter (sample, position, site,
   * column/4), word column%4; kept when word ≥ p·2³². tokenKeys[n,2] = (sample, position); random[1,2] = (seed, step), both i32.
   */
  dropout: signature('y', 'x tokenKeys random', 'site accumulate', 'p'),
  /**
   * y[i] = x[i] + alpha·scale[i]·u, u uniform in [−1, 1) from the words of `dropout`: 2·(word >> 8)/2²⁴ − 1. y may be x.
   * NEFTune (arXiv 2310.05914) with scale = 1/√(tokens of the sequence · width).
   */
  noise: signature('y', 'x scale tokenKeys random', 'site', 'alpha'),
  /**
   * The head and its cross entropy, a few rows at a time: z = softcap(logitScale·h·wᵀ) [+ bias, not with a softcap]; nll[i] = lse(z_i) − z_i[label_i];
   * when dH is present also dH = Σ weight_i·∂nll_i/∂h_i, dW += … and dBias += …, in the same visit. m rows; labels are all ≥ 0.
   * logits[chunk, V] is scratch. 2hV FLOPs per row, 4hV with dH, 6hV with dW.
   */
  headLoss: signature('nll dH? dW? logits dBias?', 'h w labels weights bias?', 'precision', 'logitScale softcap'),
  /** x = softcap·tanh(scale·x/softcap), or scale·x when softcap is 0; in place. */
  logitCap: signature('x', '', '', 'scale softcap'),
  /** out[1,1] (f64) (+)= Σ a_i·b_i over two fp32 lists of one length, in f64 and in a fixed order: the loss of a micro-step. */
  dot: signature('out', 'a b', 'accumulate'),
  /** out[slot] (f64) (+)= Σ x² in fixed blocks of 4096 elements summed in order. */
  sumSquares: signature('out', 'x', 'slot accumulate'),
  /**
   * AdamW, decay first as torch does (arXiv 1711.05101): g = scalars[0]·grad; p −= lr·wd·p; m = β1·m + (1−β1)g;
   * v = β2·v + (1−β2)g²; p −= lr/c1 · m/(√v/√c2 + eps). scalars (f64) = gradient scale, c1 = 1−β1ᵗ, c2 = 1−β2ᵗ, lr of each group.
   * A scale that is NaN leaves everything as it is.
   */
  adamw: signature('p m v', 'grad scalars', 'group', 'beta1 beta2 eps weightDecay'),
  /**
   * scalars[0] = min(1, maxNorm/(√squares + 1e-6)), 1 when maxNorm is 0, as torch.nn.utils.clip_grad_norm_ scales; NaN when squares or
   * loss is not finite, so that a spoilt step changes nothing. squares, loss [1,1] f64.
   */
  clipScale: signature('scalars', 'squares loss', '', 'maxNorm'),
  /** x = value. */
  fill: signature('x', '', '', 'value'),
  /** y = x converted to y's type, round to nearest even. */
  cast: signature('y', 'x'),
  /**
   * Chooses k of E experts for each token: those of the largest logits (the lower number on a tie). A choice is a slot; slots are
   * sorted by expert, then token, then rank. In that order: weight[n·k] = p (÷ Σ p of the token's choices when `renormalise`) with
   * p = softmax(logits), token[n·k] = the row it came from. place[n,k] = slot of each choice, first[E+1] = where each expert's slots
   * begin. balance[1,2E] (f64) = how often each expert was chosen, then Σ_rows p. Sparse mixture: arXiv 1701.06538.
   */
  route: signature('weight token place first balance?', 'logits', 'renormalise'),
  /**
   * dLogits of `route` from dWeight, for all tokens: with renormalisation w_j·(dw_j − Σ w·dw) over the choices, without it
   * p_e·(g_e − Σ p·g), g = dw at the choices and 0 elsewhere. With `share` also p_e·(b_e − Σ p·b), b = shareWeight·share.
   */
  routeGrad: signature('dLogits', 'dWeight logits place first share? shareWeight?', 'renormalise'),
  /**
   * Load balance over all routed layers (arXiv 2101.03961): N = Σ counts / choices rows; loss = E·Σ_e (counts_e/N)·(Σp_e/N);
   * share[1,E] = ∂loss/∂p of any row = E·counts_e/N². Counts pass no gradient.
   */
  balanceLoss: signature('loss share', '…balance', 'choices'),
  /**
   * A gemm for each expert e on its slots S_e = first[e] … first[e+1]−1, with its own matrix b_e out of a stack of E.
   * mode 0: c[S_e] = alpha·a[S_e]·b_eᵀ + lowAlpha·lowA[S_e]·lowB_eᵀ; mode 1: the same with b_e and lowB_e not transposed;
   * mode 2: c_e += alpha·a[S_e]ᵀ·b[S_e]. A stack is [E·rows, cols], matrix e its rows from e·rows on; `byColumns` says which operand
   * is [rows, cols·E] instead, matrix e the columns e, e+E, …: 0 none, 1 b (c in mode 2), 2 lowB. PEFT stores lora_B of experts so.
   */
  expertGemm: signature('c', 'a b first lowA? lowB?', 'mode precision byColumns', 'alpha lowAlpha'),
  /** y[i] (+)= Σ_j x[place[i,j]] + add[i], j in order. Several rows of x go to one row of y, each to one only. */
  combineRows: signature('y', 'x place add?', 'accumulate'),
  /** y[i] = w[i]·x[i]; w in fp32 or in the type of x. y may be x. */
  scaleRows: signature('y', 'x w'),
  /** dx[i] = w[i]·dy[i]; dw[i] = dy[i]·x[i], of w's type. dx may be dy's memory. */
  scaleRowsGrad: signature('dx dw?', 'dy x w'),
  /** y = alpha·w⊙x [+ bias] [+ add], w[1,c] a factor of each column. y may be x or add. */
  scaleColumns: signature('y', 'x w bias? add?', '', 'alpha'),
  /** dx = alpha·w⊙dy; dm += alpha·Σ_rows dy⊙x / norm (nothing where norm is 0): gradient where w = m/norm. dx may be dy's memory. */
  scaleColumnsGrad: signature('dx dm', 'dy x w norm', '', 'alpha'),
  /** out[1,n] = Σ_c x[r,c]² of each row, in f64. */
  rowSquares: signature('out', 'x'),
  /**
   * Row lengths of a weight with its adapter (DoRA, arXiv 2402.09353): norm_o = ‖W_o + scale·B_o·A‖ and gain = m/norm (0 where norm is
   * 0) from squares_o = ‖W_o‖², wa[r,n] = A·Wᵀ and gram[r,r] = A·Aᵀ: norm² = squares + scale·2·B_o·wa + scale²·B_o·gram·B_oᵀ. These are
   * sums of fp32 products: norm² is off by about 2⁻²²·(squares + scale²·B_o·gram·B_oᵀ), and never taken to be less than that.
   */
  doraNorm: signature('gain norm', 'squares m b wa gram', '', 'scale'),
  /** c += alpha·b_e·a_e for rows [row, row + c.rows) of a stack [E·out, in]: a [r·E, in] by rows, b [out, r·E] by columns (see expertGemm). */
  expertDelta: signature('c', 'a b', 'row experts', 'alpha'),
  /**
   * y = rows [row, row + y.rows) of a quantised matrix: code·absmax (q4, q4n; kernels/core/quant4.h) or number·scale / divisor (q8;
   * kernels/core/quant8.h), rounded to the type that the matrix had, then converted to y's.
   */
  dequantise: signature('y', 'x', 'row'),
  /**
   * AdamW with moments of 8 bits in blocks of 256, as bitsandbytes does it (arXiv 2110.02861): m and v (u8) are codes of the dynamic
   * map, signed for m, times the block's absmax. m and v as in adamw; p −= lr·√c2/c1 · m/(√v + √c2·eps); then p −= lr·wd·p. A gradient
   * that is not finite leaves p alone and clears its moments. All operands are one row; scalars as in adamw, here and below.
   */
  adamw8: signature('p m v absmaxM absmaxV', 'grad scalars', 'group', 'beta1 beta2 eps weightDecay'),
  /** Lion (arXiv 2302.06675): p −= lr·wd·p; p −= lr·sign(β1·m + (1−β1)g); m = β2·m + (1−β2)g. Scalars as in adamw. */
  lion: signature('p m', 'grad scalars', 'group', 'beta1 beta2 weightDecay'),
  /** Lion with m of 8 bits in blocks of 256. */
  lion8: signature('p m absmax', 'grad scalars', 'group', 'beta1 beta2 weightDecay'),
  /** torch's SGD: g += wd·p; m = momentum·m + g (absent: plain); p −= lr·m. Scalars as in adamw. */
  sgd: signature('p m?', 'grad scalars', 'group', 'momentum weightDecay'),
  /**
   * Adafactor (arXiv 1804.04235) on one matrix without its own learning rate, as transformers runs it: q = g² + floor;
   * row = β·row + (1−β)·mean over columns of q, column likewise (absent: row holds all of β·row + (1−β)q);
   * u = g/√(row·column/mean(row)); u /= max(1, rms(u)/clip); p = (1 − lr·wd)·p − lr·u. scalars (f64) = gradient scale, β, 0, lr of each group.
   */
  adafactor: signature('p row column?', 'grad scalars', 'group', 'floor clip weightDecay'),
  /**
   * host = x, a copy to memory of the system that begins when all before it is done and runs beside what comes after. x may be changed,
   * and host read, after `awaitCopy(x)`. Both are whole matrices of one type.
   */
  offload: signature('host', 'x'),
  /** y = host, in the same way; neither may be touched before `awaitCopy(y)`. */
  prefetch: signature('y', 'host'),
  /** What comes after it sees the copy of x, or into x, done. */
  awaitCopy: signature('', 'x'),
  /** y = scaling[0]·x, both fp32: what the loss weighs, times the loss scale, so that gradients come out scaled. scaling (f64): see updateScale. */
  scaleLoss: signature('y', 'x scaling'),
  /**
   * Clip and dynamic loss scaling, as torch.amp.GradScaler and clip_grad_norm_ do them one after the other, on gradients of S·loss.
   * scaling (f64) = S, good steps since S changed, steps skipped so far, the S that this step was computed with. choices (f64) = how many
   * skipped steps the first row is for, then rows of `width` numbers, each for one more. scalars[1 … width] = the row for the steps
   * skipped so far (the last there is). squares and loss finite: scalars[0] = min(1, maxNorm/(√squares/S + 1e-6))/S (1/S when maxNorm is 0), and S
   * doubles after `interval` good steps in a row, up to 2¹²⁷. Else scalars[0] = NaN, S halves, and one more is skipped.
   */
  updateScale: signature('scalars scaling', 'squares loss choices', 'interval width', 'maxNorm'),
} as const satisfies Record<string, CommandSignature>

export type CommandName = keyof typeof commandSignatures
export const commandNames = Object.keys(commandSignatures) as CommandName[]
