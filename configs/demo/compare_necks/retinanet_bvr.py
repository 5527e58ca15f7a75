_base_ = 'retinanet_fpn.py'

model = dict(bbox_head=dict(type='mmext.BVRHead', head='mmdet.RetinaHead', base_size=(64, 64)))
