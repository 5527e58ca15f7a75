# An RDNet of the demo's size in the place of the ResNet.
_base_ = 'resnet.py'

model = dict(
    backbone=dict(
        _delete_=True,
        type='mmext.RDNet',
        arch=dict(channels=24, growths=(8, 24, 16), halvings=(1, 2)),
        out_indices=(2,),
        pooled_norm=True,
    )
)
