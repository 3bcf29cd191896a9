export interface Cluster {
  url: string;
  host: string;
  port: number;
  pid: number;
  stop: () => Promise<void>;
}

export function superviseCluster(options: {
  dataDir?: string;
  port?: number;
  settings?: Record<string, string | number | boolean>;
  native?: string;
  resolveFrom?: string;
}): Promise<Cluster>;
