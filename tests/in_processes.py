"""Run by test_train.py, in one process and in two: what must not depend on their number.

`torchrun --nproc-per-node 2 tests/in_processes.py DATA OUT.npz`
"""

import sys

import numpy as np
import torch

from emo import TrainConfig
from emo.dataset import normalise
from emo.runs import load_data
from emo.train import Training, make_accelerator, train_step

config = TrainConfig(data_dir=sys.argv[1], pretrained=False, image_size=32, batch_size=32, beta=1)
accelerator = make_accelerator(cpu=True, mixed_precision="no")
run = Training(config, *load_data(config), accelerator)
found = {"processes": accelerator.num_processes}

output, labels = run.predict_val()
row = run.validate()
found |= {"logits": output.logits, "emotion": labels["emotion"], "va": labels["va"]}
found |= {name: row[name] for name in ("val_loss", "val_macro_f1", "val_ccc_valence")}

seen = []
for epoch in range(2):
    run.train_loader.set_epoch(epoch)
    for batch in run.train_loader:
        sums = batch["image"].double().sum(dim=(1, 2, 3))  # tells the faces apart
        seen.append(accelerator.gather(sums).sort().values)
found["seen"] = torch.stack(seen)

run.model.eval()  # batch norm would see half of a batch in each process
optimizer = torch.optim.SGD(run.network.parameters(), lr=1.0)  # a step is minus the gradient
before = torch.cat([p.detach().flatten().clone() for p in run.network.parameters()])
batch["image"] = normalise(batch["image"])
for parts in (1, 2):
    train_step(run.model, optimizer, batch, accelerator=accelerator, parts=parts)
    after = torch.cat([p.detach().flatten().clone() for p in run.network.parameters()])
    found[f"gradient_{parts}"] = after - before
    torch.nn.utils.vector_to_parameters(before.clone(), run.network.parameters())
if accelerator.is_main_process:
    np.savez(sys.argv[2], **found)
