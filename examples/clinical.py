"""From a CSV file to a distilled one: python examples/clinical.py patients.csv died distilled.csv."""

import sys

from mct_fast.data import TableSpec, load_dataset
from mct_fast.distill import DistillConfig, distill
from mct_fast.experts import ExpertConfig, train_experts

source, target, out = sys.argv[1:]
data = load_dataset("table", data_path=source, table=TableSpec(target=(target,)))
experts = ExpertConfig(model="MLP", depth=1, num_experts=5, train_epochs=20, batch_train=64, lr_teacher=0.1)
store = train_experts(experts, f"{out}.experts", data)
config = DistillConfig(
    ipc=10, img_optimizer="adam", lr_img=0.05, lr_teacher=0.1, lr_lr=1e-3, max_start_epoch=5, iterations=100, eval_it=25
)
print(distill(config, store, data).to_csv(out))
