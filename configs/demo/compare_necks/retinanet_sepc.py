_base_ = 'retinanet_fpn.py'

model = dict(
    neck=[
        _base_.model.neck,
        dict(type='mmext.SEPC', in_channels=64, out_channels=64, num_outs=3, num_pconvs=2, ibn=True),
    ],
    bbox_head=dict(type='mmext.PairHead', head='mmdet.RetinaHead', stacked_convs=0),
)
