"""The operator schemas, as `csrc/ops.cpp` declares them; used where the extension is not installed."""

from __future__ import annotations

NAMESPACE = "mct_fast"

SCHEMAS: tuple[str, ...] = (
    "conv3x3(Tensor x, Tensor w, Tensor? bias=None, Tensor? x2=None, Tensor? w2=None) -> Tensor",
    "conv3x3_input_grad(Tensor g, Tensor w, Tensor? g2=None, Tensor? w2=None) -> Tensor",
    "conv3x3_weight_grad(Tensor g, Tensor x, Tensor? g2=None, Tensor? x2=None) -> (Tensor, Tensor)",
    "block_forward(Tensor z, Tensor? gamma, Tensor? beta, float eps, bool pool) -> (Tensor, Tensor, Tensor)",
    "block_backward(Tensor gp, Tensor z, Tensor mean, Tensor rstd, Tensor? gamma, Tensor? beta, bool pool)"
    " -> (Tensor, Tensor, Tensor)",
    "block_tangent(Tensor z, Tensor zdot, Tensor mean, Tensor rstd, Tensor? gamma, Tensor? beta,"
    " Tensor? gammadot, Tensor? betadot, bool pool) -> (Tensor, Tensor, Tensor)",
    "block_tangent_backward(Tensor gp, Tensor gpdot, Tensor z, Tensor zdot, Tensor mean, Tensor rstd,"
    " Tensor mean_zdot, Tensor mean_xhat_zdot, Tensor? gamma, Tensor? beta, Tensor? gammadot, Tensor? betadot,"
    " bool pool) -> (Tensor, Tensor, Tensor, Tensor)",
    "linear_ce(Tensor h, Tensor w, Tensor b, Tensor y) -> (Tensor, Tensor, Tensor, Tensor)",
    "linear_ce_tangent(Tensor h, Tensor hdot, Tensor w, Tensor wdot, Tensor b, Tensor bdot, Tensor y)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "linear_bce(Tensor h, Tensor w, Tensor b, Tensor y, Tensor pos, Tensor neg) -> (Tensor, Tensor, Tensor, Tensor)",
    "linear_bce_tangent(Tensor h, Tensor hdot, Tensor w, Tensor wdot, Tensor b, Tensor bdot, Tensor y, Tensor pos,"
    " Tensor neg) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    "matching_loss(Tensor theta, Tensor origin, Tensor end, Tensor frac, Tensor offsets, Tensor denom)"
    " -> (Tensor, Tensor)",
    "sgd_step_(Tensor(a!) params, Tensor grad, Tensor(b!)? momentum_buffer, Tensor lr, float momentum,"
    " float weight_decay) -> ()",
    "arc_length(Tensor previous, Tensor current, Tensor offsets) -> Tensor",
    "dsa(Tensor x, Tensor kinds, Tensor params) -> Tensor",
    "dsa_transpose(Tensor g, Tensor kinds, Tensor params) -> Tensor",
)


def op_name(schema: str) -> str:
    """The operator's name within the namespace."""
    return schema.split("(", 1)[0]
