_base_ = './retinanet_r50_fpn_soft-hgnn_1x_coco.py'

# Of 32 dynamic edges each image uses 8. The hook lets all of them be chosen equally often.
mixer = dict(type='mmext.SoftHGNNSeS', num_dynamic=32, top_k=8, num_fixed=4)
model = dict(neck=[_base_.model.neck[0], dict(_base_.model.neck[1], mixer=mixer)])
custom_hooks = [dict(type='mmext.LoadBalanceHook', weight=0.01)]
