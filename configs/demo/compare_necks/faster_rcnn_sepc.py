_base_ = 'faster_rcnn_fpn.py'

# SEPC's pyramid convolutions. Its maps for two branches need a dense head.
model = dict(
    neck=[
        _base_.model.neck,
        dict(type='mmext.PConvNeck', in_channels=64, out_channels=64, num_outs=3, num_pconvs=2, ibn=True),
    ]
)
