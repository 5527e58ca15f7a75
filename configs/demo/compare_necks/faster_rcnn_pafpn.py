_base_ = 'faster_rcnn_fpn.py'

model = dict(neck=dict(type='PAFPN'))
