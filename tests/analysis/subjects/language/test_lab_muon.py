import pytest
import torch

from analysis.subjects.language.lab_muon import MOMENTUM, Muon, orthogonal


@pytest.mark.parametrize("shape", [(6, 6), (4, 16), (16, 4)])
def test_singular_values_become_one_and_vectors_stay(shape):
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = orthogonal(matrices)
    u, before, v = torch.linalg.svd(matrices, full_matrices=False)
    inside = u.mT @ found @ v.mT  # in the matrix's own singular vectors the result is diagonal
    values = inside.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(inside, torch.diag_embed(values), atol=1e-8, rtol=0)
    large = before > 0.05 * before.norm(dim=1, keepdim=True)
    assert bool(((values > 0.6) & (values < 1.3))[large].all())


def test_a_step_equals_one_written_out_matrix_by_matrix():
    generator = torch.Generator().manual_seed(1)
    shapes = [(5, 5), (5, 10), (5, 5), (10, 5)]
    parameters = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    wanted = [one.detach().clone() for one in parameters]
    momenta = [torch.zeros(shape) for shape in shapes]
    muon = Muon(parameters)
    for step in range(3):
        for i, one in enumerate(parameters):
            one.grad = torch.randn(shapes[i], generator=generator)
            momenta[i] = MOMENTUM * momenta[i] + (1 - MOMENTUM) * one.grad
            ahead = MOMENTUM * momenta[i] + (1 - MOMENTUM) * one.grad
            longer = (shapes[i][1] / shapes[i][0]) ** 0.5 if shapes[i][1] > shapes[i][0] else 1.0
            wanted[i] = wanted[i] - 0.1 * (step + 1) * longer * orthogonal(ahead[None])[0]
        muon.step(0.1 * (step + 1))
    for one, right in zip(parameters, wanted, strict=True):
        torch.testing.assert_close(one.detach(), right, atol=1e-5, rtol=1e-4)
