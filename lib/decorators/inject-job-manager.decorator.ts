import { Inject } from '@nestjs/common';
import { getJobsToken } from '../jobs.constants.js';
import { JobManager } from '../manager/job.manager.js';

/**
 * Injects the `JobManager` of a named instance.
 *
 * @example
 * constructor(@InjectJobManager('reports') private readonly reports: JobManager) {}
 */
export const InjectJobManager = (name?: string): ParameterDecorator & PropertyDecorator =>
  Inject(getJobsToken(JobManager, name));
