_base_ = 'faster_rcnn_fpn.py'

model = dict(neck=[_base_.model.neck, dict(type='mmext.SCNN', in_channels=[64, 64, 64], out_channels=64)])
