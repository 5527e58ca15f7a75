"""ProtoPNet: distances, losses, push and pruning, and its training in stages by config."""

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch.utils.data import Dataset

from mmext.analysis.prototypes import draw_prototypes, part_of
from mmext.heads.proto_pnet import ProtoPNetHead
from mmext.hooks.prototype_push import PrototypePushHook


def head(**args):
    torch.manual_seed(0)
    return ProtoPNetHead(3, 8, 2, 4, **args).double().eval()


def feats(number=5):
    torch.manual_seed(1)
    return [torch.randn(number, 8, 4, 3).double()]


def samples(labels):
    from mmpretrain.structures import DataSample

    return [DataSample().set_gt_label(int(label)) for label in labels]


def test_distances_are_those_of_every_pair():
    built = head()
    z = built.patches(feats())
    want = (z[:, None] - built.prototypes[None, :, :, None, None]).square().sum(2)
    torch.testing.assert_close(built.distances(z), want)
    torch.testing.assert_close(built.nearest(feats()), want.flatten(2).min(2)[0])


def test_the_start_is_the_authors():
    built = head()
    own = torch.tensor([[1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]]).bool()
    assert torch.equal(built.last.weight, torch.where(own, 1.0, -0.5).double())
    assert ((built.prototypes >= 0) & (built.prototypes < 1)).all()
    widths = [layer.out_channels for layer in ProtoPNetHead(3, 512).add_on if hasattr(layer, 'out_channels')]
    assert widths == [256, 256, 128, 128]


def test_losses_are_their_equations():
    built, labels = head(), torch.tensor([0, 2, 1, 1, 0])
    losses = built.loss(feats(), samples(labels))
    d = built.nearest(feats())
    torch.testing.assert_close(losses['loss'], torch.nn.functional.cross_entropy(built(feats()), labels))
    own = [d[i, 2 * y : 2 * y + 2].min() for i, y in enumerate(labels)]
    others = [min(d[i, j] for j in range(6) if j // 2 != y) for i, y in enumerate(labels)]
    torch.testing.assert_close(losses['loss_cluster'], 0.8 * sum(own) / 5)
    torch.testing.assert_close(losses['loss_separation'], -0.08 * sum(others) / 5)
    torch.testing.assert_close(losses['loss_sparsity'], torch.tensor(1e-4 * 0.5 * 12).double())


def test_after_a_push_every_prototype_is_a_patch_of_its_class():
    built, labels = head(), torch.tensor([0, 0, 1, 1, 0])  # class 2 has no image
    x = feats()[0]
    before = built.prototypes.clone()
    moved = built.push([([x[:2]], labels[:2]), ([x[2:]], labels[2:])])
    assert (moved[:4] > 0).all()
    assert torch.equal(built.prototypes[4:], before[4:])
    assert built.source[4:].unique().tolist() == [-1]
    z = built.patches([x])
    for prototype, (image, row, column), y in zip(built.prototypes, built.source.tolist(), (0, 0, 1, 1), strict=False):
        assert labels[image] == y
        assert torch.equal(prototype, z[image, :, row, column])
    assert built.nearest([x])[built.source[:4, 0], range(4)].max() < 1e-12
    assert (built.nearest([x])[:, :4].min(0)[0] < 1e-12).all()
    once = built.prototypes.clone()
    assert not built.push([([x], labels)]).any()
    assert torch.equal(built.prototypes, once)


def test_pruning_takes_the_vote_of_prototypes_without_a_class():
    built = head()
    x, labels = feats(6)[0], torch.tensor([0, 0, 0, 1, 1, 2])
    pruned = built.prune([([x], labels)], nearest=6, threshold=3)
    assert pruned == [2, 3, 4, 5]  # all images are looked at: class 0 has three, the others fewer
    assert not built.last.weight[:, 2:].any()
    losses = built.loss([x], samples(labels))
    assert all(value.isfinite() for value in losses.values())
    with torch.no_grad():
        want = built([x])
        built.prototypes[2:] = 7
        assert torch.equal(built([x]), want)
    other = head()
    other.load_state_dict(built.state_dict())
    assert torch.equal(other([x]), want)


def test_the_plan_of_stages():
    hook = PrototypePushHook(warm_epochs=2, push_start=3, push_interval=2, last_epochs=1)
    plan = hook.plan(9)
    assert ''.join(epoch.stage[0] for epoch in plan) == 'wwjljjljj'
    assert [i for i, epoch in enumerate(plan) if epoch.push] == [2, 5, 8]
    pruning = PrototypePushHook(0, 1, 1, 0, prune_epoch=1).plan(4)
    assert [epoch.stage for epoch in pruning] == ['joint', 'joint', 'last', 'last']


class Blots(Dataset):
    """Images of one color each."""

    metainfo: dict = {}

    def __len__(self):
        return 8

    def __getitem__(self, index):
        image = torch.full((3, 32, 32), 40) + 60 * (index % 2)
        return dict(inputs=image, data_samples=samples([index % 2])[0])


PLAN = dict(warm_epochs=0, push_start=2, last_epochs=1, dataset=dict(type='test_heads_proto_pnet.Blots'))


def runner(tmp_path, epochs=3, **hook):
    cfg = Config(
        dict(
            default_scope='mmpretrain',
            model=dict(
                type='ImageClassifier',
                data_preprocessor=dict(mean=[100.0] * 3, std=[50.0] * 3),
                backbone=dict(type='ResNet', depth=18, stem_channels=4, base_channels=4),
                head=dict(
                    type='mmext.ProtoPNetHead', num_classes=2, in_channels=32, prototypes_per_class=2, channels=8
                ),
            ),
            optim_wrapper=dict(optimizer=dict(type='Adam', lr=1e-2)),
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            work_dir=str(tmp_path),
            experiment_name=f'proto_{tmp_path.name}_{epochs}',
            train_dataloader=dict(
                dataset=dict(type='test_heads_proto_pnet.Blots'),
                batch_size=4,
                sampler=dict(type='DefaultSampler', shuffle=False),
            ),
        )
    )
    made = Runner.from_cfg(cfg)
    made.register_hook(PrototypePushHook(**dict(PLAN, **hook)))
    return made


def test_it_trains_in_stages(tmp_path, monkeypatch):
    made = runner(tmp_path)
    built = made.model.head
    at_start = {k: v.clone() for k, v in made.model.state_dict().items()}
    states = []
    monkeypatch.setattr(
        PrototypePushHook,
        'after_train_iter',
        lambda self, r, *_, **__: states.append({k: v.clone() for k, v in r.model.state_dict().items()}),
        raising=False,
    )
    made.train()
    assert torch.equal(states[3]['head.last.weight'], at_start['head.last.weight'])
    assert not torch.equal(states[3]['backbone.conv1.weight'], at_start['backbone.conv1.weight'])
    pushed, end = states[4], made.model.state_dict()
    changed = {k for k in end if not torch.equal(end[k], pushed[k])}
    assert changed == {'head.last.weight'}, 'in the last stage only the last layer moves, statistics included'
    assert (end['head.source'] >= 0).all()
    assert not torch.equal(pushed['head.prototypes'], states[3]['head.prototypes'])
    assert all(p.requires_grad for p in made.model.parameters())
    # What was pushed is still what the network computes of that image.
    images = torch.stack([Blots()[i]['inputs'] for i in range(8)]).float()
    with torch.no_grad():
        z = built.patches(made.model.eval().extract_feat((images - 100) / 50))
    for prototype, (image, row, column) in zip(built.prototypes, built.source.tolist(), strict=True):
        torch.testing.assert_close(prototype.detach(), z[image, :, row, column], rtol=1e-4, atol=1e-5)


def test_the_part_is_where_the_prototype_answers_most():
    heat = torch.zeros(20, 30)
    heat[5:8, 10:14] = 1
    assert part_of(heat, 0.98) == (5, 8, 10, 14)
    figure = draw_prototypes(
        [dict(image=torch.zeros(20, 30, 3).byte().numpy(), heat=heat.numpy(), box=(5, 8, 10, 14), title='a')]
    )
    assert len(figure.axes) == 3


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r'a last map \(N, 8, H, W\), got shape \(2, 8\); set neck=None'):
        ProtoPNetHead(3, 8)([torch.randn(2, 8)])
    with pytest.raises(ValueError, match='never pushes in 3 epochs with push_start=5'):
        runner(tmp_path, push_start=5).train()
