_base_ = '../../inr/_base_/camera-256_5k.py'
# The default encoder has no semantics. With a checkpoint of EfficientNet-B7, as in the paper:
#   semantics=dict(
#       type='mmext.SemanticEncoder',
#       size=600,
#       backbone=dict(type='mmpretrain.EfficientNet', arch='b7',
#                     init_cfg=dict(type='Pretrained', checkpoint=..., prefix='backbone')),
#       modules=('layers.1', 'layers.2', 'layers.3', 'layers.4.9', 'layers.4.19', 'layers.5.12', 'layers.5.16'),
#   ), condition_dim=1568
model = dict(
    type='mmext.SignalModel',
    network=dict(
        type='mmext.SPW',
        network=dict(
            type='mmext.CoordMLP', out_features=1, width=256, depth=4, act_cfg=dict(type='mmext.SineActivation')
        ),
    ),
)
# A tenth of SIREN's rate: each step moves generated weights by more than it would move free ones.
optim_wrapper = dict(optimizer=dict(lr=1e-5))
