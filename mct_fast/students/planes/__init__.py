"""The ConvNet student that a GPU runs best: activations as halves, parameters in the kernels' order, blocks fused by planes.

`geometry` says which networks it takes, and the shapes; `layout` where each parameter lies; `memory` the buffers of a step;
`engine` one step of S students and its tangent as launches; `sweep` a whole match.
"""
