# Stage 3: a detector on the refocused FalconNet with LENI in it, and SEPC as its neck.
_base_ = ['../_base_/falconnet.py', '../_base_/retinanet.py', '../_base_/scenes_det.py']

model = dict(
    backbone=_base_.falconnet,
    neck=[
        dict(
            type='FPN',
            in_channels=[32, 64, 128],
            out_channels=64,
            start_level=1,
            num_outs=3,
            add_extra_convs='on_output',
        ),
        dict(type='mmext.SEPC', in_channels=64, out_channels=64, num_outs=3, num_pconvs=2, ibn=True),
    ],
    bbox_head=dict(type='mmext.PairHead', head='RetinaHead'),
)
