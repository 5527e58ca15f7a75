"""ADD-GCN: the diagonal alone, gradients through both graphs, and a stock classifier with several labels."""

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from mmext.analysis.samples import take_step
from mmext.heads.add_gcn import MultiLabelADDGCNHead
from mmext.hosts import build_model


def test_the_diagonal_is_the_masked_linear_layer():
    head = MultiLabelADDGCNHead(5, 4, 6).double().eval()
    nodes = torch.randn(3, 6, 5).double()
    moved = []
    head.dynamic_weight.register_forward_hook(
        lambda _, args, out: moved.append(torch.nn.functional.leaky_relu(out, 0.2))
    )
    got = head._graph_scores(nodes)
    whole = (moved[0] + nodes).transpose(1, 2) @ head.score.weight.T + head.score.bias
    torch.testing.assert_close(got, whole.diagonal(dim1=1, dim2=2))


@pytest.mark.parametrize('num_classes', [1, 3])
def test_gradients_reach_both_graphs(num_classes):
    head = MultiLabelADDGCNHead(num_classes, 4, 6, top=2)
    scores = head([torch.randn(2, 4, 5, 3)])
    assert scores.shape == (2, num_classes)
    scores.square().sum().backward()
    assert all(p.grad.any() for p in head.parameters())
    graph = head.dynamic_graph(torch.randn(2, 6, num_classes))
    assert graph.shape == (2, num_classes, num_classes)
    assert ((graph > 0) & (graph < 1)).all()


def test_a_stock_classifier_trains_on_scenes_with_several_labels():
    cfg = Config.fromfile('configs/demo/cls/add_gcn_scenes.py')
    init_default_scope('mmpretrain')
    model = build_model({**cfg.model.to_dict(), 'data_preprocessor': cfg.data_preprocessor.to_dict()})
    data = DATASETS.build({**cfg.train_dataloader.dataset, 'number': 4})
    batch = {key: [data[i][key] for i in range(4)] for key in ('inputs', 'data_samples')}
    labels = [len(sample.gt_label) for sample in batch['data_samples']]
    assert max(labels) > 1
    assert take_step(model.train(), cfg.optim_wrapper, batch)['loss'] > 0
    with torch.no_grad():
        results = model.eval().test_step(batch)
    assert results[0].pred_score.shape == (10,)


def test_a_pooled_vector_is_refused():
    with pytest.raises(ValueError, match=r'a last map \(N, 4, H, W\), got shape \(2, 4\); set neck=None'):
        MultiLabelADDGCNHead(3, 4, 6)([torch.randn(2, 4)])
