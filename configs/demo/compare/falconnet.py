# The host of the depthwise layers: the demo's small FalconNet with 7 x 7 depthwise kernels.
# A system goes in by a rule of its own in the place of this one's.
_base_ = '../_base_/compare_digits.py'

# What the diffs of this config are compared with; they inherit it.
reference = 'falconnet.py'

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmext.swap_layers',
        model='mmext.FalconNet',
        arch=dict(depths=(1, 2, 2), channels=(24, 48, 96)),
        block=dict(type='mmext.MetaLightBlock', expansion=3, spatial=dict(type='Conv2d'), channel=dict(type='Conv2d')),
        out_indices=(2,),
        rules=[dict(depthwise=True, stride=1, to=dict(type='mmext.DepthwiseConv2d', kernel_size=7, padding=3))],
    ),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead', num_classes=10, in_channels=96, loss=dict(type='CrossEntropyLoss', loss_weight=1.0)
    ),
)
