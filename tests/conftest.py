"""One thread a test process: tests run side by side, and more threads than cores would make all of them wait."""

import torch

torch.set_num_threads(1)
